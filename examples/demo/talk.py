"""Turns in which no tool is right: small talk, and requests that no tool of the catalogue serves.

Many of the latter are near misses on purpose (cancel an alarm, delete an item, buy shares): what a tool's name has to
do with is not enough to call it. Training and held-out requests are written apart; none stands in both.
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
    "Order a pizza to my house.",
    "Call {contact} on the phone.",
    "Call me a taxi in {city}.",
    "Rent a car in {city}.",
    "Book a hotel in {city}.",
    "How many people live in {city}?",
    "What's the fastest train to {city}?",
    "Cancel my table at {restaurant}.",
    "Is {restaurant} any good?",
    "What's on the menu at {restaurant}?",
    "Cancel my alarm at {time}.",
    "Read me the messages from {contact}.",
    "What's {contact}'s address?",
    "Buy ten shares of {symbol}.",
    "Who runs the company behind {symbol}?",
    "When was {artist} born?",
    "Buy tickets for a concert of {artist}.",
    "What is {minutes} times {guests}?",
    "Delete {item} from my shopping list.",
    "How do I cook {item}?",
    "Send an email to {contact}.",
    "Turn off the lights.",
    "Open the garage door.",
    "What's in the news today?",
    "Who won the game last night?",
    "Find my phone.",
    "Print this document.",
    "What's the capital of Peru?",
    "Recommend a good book about {word}.",
    "Take a photo.",
    "Teach me some {language}.",
    "What's on my calendar on {date}?",
)
UNSERVED_HELD_OUT = _unserved(
    _CANNOT,
    "Make up a story about {word}.",
    "Sing a song about {word}.",
    "Summarize a book on {word}.",
    "Find me an apartment in {city}.",
    "Who is the mayor of {city}?",
    "Order flowers for {contact}.",
    "Show me photos of {contact}.",
    "Does {restaurant} have parking?",
    "Remove the {time} alarm.",
    "Sell all my {symbol} shares.",
    "How old is {artist}?",
    "Add {minutes} and {guests} together.",
    "How many calories are in {item}?",
    "Lock the front door.",
    "What's a good movie for tonight?",
    "Increase the heating in the living room.",
    "What year did the war end?",
    "Who speaks {language} in my town?",
    "Move my {date} meeting to the next day.",
)

TALK_SLOTS = {
    "word": "word",
    "contact": "contact",
    "city": "city",
    "restaurant": "restaurant",
    "time": "time",
    "symbol": "symbol",
    "artist": "artist",
    "minutes": "minutes",
    "guests": "guests",
    "item": "grocery",
    "language": "language",
    "date": "date",
}
"""The pool of each slot in a request that no tool serves."""
