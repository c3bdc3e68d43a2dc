"""Turns in which no tool is right: small talk, and requests that no tool of the catalogue serves.

Some of the latter are near misses on purpose (delete an alarm, buy shares): what a tool's name has to do with is not
enough to call it. Training and held-out requests are written apart; none stands in both.
"""

from typing import NamedTuple


class Talk(NamedTuple):
    """A turn in which no tool is right, and the assistant's honest reply."""

    request: str
    reply: str


def _unserved(reply: str, *requests: str) -> tuple[Talk, ...]:
    return tuple(Talk(request, reply) for request in requests)


_CANNOT = "Sorry, I have no tool for that."

SMALL_TALK_TRAIN = (
    *_unserved("Hello! How can I help?", "Hi!", "Hello there.", "Good morning!", "Hey, are you awake?"),
    *_unserved("You're welcome!", "Thanks a lot!", "Thank you, that was quick.", "Great, thanks for your help."),
    *_unserved("Goodbye!", "Bye!", "See you tomorrow.", "That's all for today."),
    *_unserved("I'm doing well, thank you!", "How are you?", "How was your day?"),
    *_unserved("I'm an assistant that can use tools.", "Who are you?", "Are you a robot?", "What's your name?"),
    *_unserved("That sounds nice!", "I love {word}.", "I was thinking about {word} today.", "My kids like {word}."),
    *_unserved("I have no favorite, I'm an assistant.", "What's your favorite color?", "Do you like {word}?"),
    *_unserved("I'm sorry to hear that.", "I'm so tired today.", "I had a bad day.", "I'm bored."),
)
SMALL_TALK_HELD_OUT = (
    *_unserved("Hello! How can I help?", "Hey!", "Good evening, assistant."),
    *_unserved("You're welcome!", "Thank you so much.", "Perfect, thanks!"),
    *_unserved("Goodbye!", "Good night, talk to you later."),
    *_unserved("I'm doing well, thank you!", "How is it going?", "Are you having a good day?"),
    *_unserved("I'm an assistant that can use tools.", "Are you a human?", "What are you?"),
    *_unserved("That sounds nice!", "I really enjoy {word}.", "There is nothing better than {word}."),
    *_unserved("I have no favorite, I'm an assistant.", "Do you prefer {word} or pizza?"),
    *_unserved("I'm sorry to hear that.", "I feel a bit sad.", "My day was terrible."),
)

UNSERVED_TRAIN = _unserved(
    _CANNOT,
    "Write a poem about {word}.",
    "Tell me a joke about {word}.",
    "Draw me a picture of {word}.",
    "Explain the history of {word}.",
    "Recommend a good book about {word}.",
    "Why do people like {word}?",
    "Give me three facts about {word}.",
    "Order a pizza to my house.",
    "Turn off the lights.",
    "Open the garage door.",
    "Start the washing machine.",
    "What's in the news today?",
    "Who won the game last night?",
    "Find my phone.",
    "Print this document.",
    "What's the capital of Peru?",
    "Who invented the telephone?",
    "How tall is Mount Everest?",
    "Take a photo.",
    "Call me a taxi.",
    "Delete my alarm.",
    "Cancel my table.",
    "Read me my messages.",
    "Buy ten shares for me.",
    "What's on my calendar today?",
)
UNSERVED_HELD_OUT = _unserved(
    _CANNOT,
    "Make up a story about {word}.",
    "Sing a song about {word}.",
    "Summarize a book on {word}.",
    "Write an essay about {word}.",
    "Lock the front door.",
    "Turn up the heating.",
    "Vacuum the living room.",
    "Show me my photos.",
    "What's a good movie for tonight?",
    "What year did the war end?",
    "Who painted the Mona Lisa?",
    "How many moons does Jupiter have?",
    "Scan this page.",
    "Remove my alarm.",
    "Sell all my shares.",
)

TALK_SLOTS = {"word": "word"}
"""The pool of each slot in a request that no tool serves."""
