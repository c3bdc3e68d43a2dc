"""How the demo's users ask for a tool, what the tool answers, and how the assistant reports it.

A phrasing's slots are argument names, and a call has exactly the arguments that its phrasing names: those of the
slots, with the values put into them, and those that the wording itself settles (`fixed`). Training and held-out
phrasings are written apart; none stands in both.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Phrasing(NamedTuple):
    """One way to ask: a sentence with slots, and the arguments that its wording settles."""

    text: str
    fixed: dict[str, Any] = {}  # noqa: RUF012  never written to


@dataclass(frozen=True)
class Intent:
    """What a tool is asked for.

    Args:
        tool (`str`): The tool's name.
        slots (`dict[str, str]`): The pool in `values.POOLS` that each argument draws from.
        train (`tuple[Phrasing, ...]`): The ways to ask in training.
        held_out (`tuple[Phrasing, ...]`): The ways to ask in the held-out split.
        result (`dict[str, str]`, *optional*): The tool's result; slots are arguments, and `{n}`, a drawn number.
            Without it the intent takes no part in conversations with results.
        answer (`str`, *optional*): What the assistant says about that result.
    """

    tool: str
    slots: dict[str, str]
    train: tuple[Phrasing, ...]
    held_out: tuple[Phrasing, ...]
    result: dict[str, str] = field(default_factory=dict)
    answer: str = ""


def _plain(*texts: str, **fixed: Any) -> tuple[Phrasing, ...]:
    return tuple(Phrasing(text, fixed) for text in texts)


INTENTS: tuple[Intent, ...] = (
    Intent(
        "get_weather",
        {"city": "city"},
        train=(
            *_plain(
                "What's the weather in {city}?",
                "How is the weather in {city} right now?",
                "Tell me the weather for {city}.",
                "Is it raining in {city}?",
                "Do I need a coat in {city} today?",
                "Can you check whether it is windy in {city}?",
                "Please look up the weather in {city}.",
                "I'd like to know how warm it is in {city}.",
                "Is {city} cold today?",
                "Check if it snows in {city}.",
            ),
            *_plain(
                "Weather in {city} in celsius, please.",
                "How warm is it in {city}, in celsius?",
                "Is it hot in {city}? Tell me in celsius.",
                "I need the temperature in {city} in celsius.",
                unit="celsius",
            ),
            *_plain(
                "Give me the temperature in {city} in fahrenheit.",
                "What's the weather like in {city}? Use fahrenheit.",
                "How hot is {city} in fahrenheit?",
                "Please check the weather in {city}, in fahrenheit.",
                unit="fahrenheit",
            ),
        ),
        held_out=(
            *_plain("Is it sunny in {city} at the moment?", "Check the weather in {city} for me."),
            *_plain("How cold is it in {city}? In celsius, please.", unit="celsius"),
            *_plain("I want to know the temperature in {city}, in fahrenheit.", unit="fahrenheit"),
        ),
        result={"temperature": "{n}", "sky": "cloudy"},
        answer="It is {n} degrees and cloudy in {city}.",
    ),
    Intent(
        "convert_currency",
        {"amount": "amount", "from_currency": "currency", "to_currency": "currency"},
        train=_plain(
            "Convert {amount} {from_currency} to {to_currency}.",
            "How much is {amount} {from_currency} in {to_currency}?",
            "What are {amount} {from_currency} worth in {to_currency}?",
            "I have {amount} {from_currency}, how many {to_currency} is that?",
            "Change {amount} {from_currency} into {to_currency}, please.",
            "I need {amount} {from_currency} expressed in {to_currency}.",
            "Please convert {amount} {from_currency} into {to_currency} for me.",
            "Can you exchange {amount} {from_currency} to {to_currency}?",
            "What is {amount} {from_currency} in {to_currency}?",
            "How many {to_currency} do I get for {amount} {from_currency}?",
            "Tell me what {amount} {from_currency} makes in {to_currency}.",
            "If I have {amount} {from_currency}, how much is it in {to_currency}?",
            "I want to swap {amount} {from_currency} for {to_currency}.",
        ),
        held_out=_plain(
            "Please exchange {amount} {from_currency} for {to_currency}.",
            "If I pay {amount} {from_currency}, what is that in {to_currency}?",
            "Turn {amount} {from_currency} into {to_currency}.",
        ),
        result={"value": "{n}"},
        answer="{amount} {from_currency} is {n} {to_currency}.",
    ),
    Intent(
        "set_timer",
        {"minutes": "minutes"},
        train=_plain(
            "Set a timer for {minutes} minutes.",
            "Start a {minutes} minute timer.",
            "Count down {minutes} minutes.",
            "Remind me when {minutes} minutes have passed.",
            "I need a timer for {minutes} minutes.",
            "Start the timer, {minutes} minutes.",
            "Let a countdown of {minutes} minutes run.",
            "Please start a timer of {minutes} minutes.",
            "Can you time {minutes} minutes for me?",
            "Begin counting down from {minutes} minutes.",
            "I want a {minutes} minute countdown.",
            "Tell me when {minutes} minutes are over.",
            "Please set the timer to {minutes} minutes.",
            "Timer, {minutes} minutes, please.",
        ),
        held_out=_plain(
            "Give me a timer of {minutes} minutes.",
            "Begin a countdown of {minutes} minutes, please.",
            "Start the countdown now, {minutes} minutes.",
        ),
        result={"status": "started"},
        answer="Your timer of {minutes} minutes is running.",
    ),
    Intent(
        "set_alarm",
        {"time": "time"},
        train=_plain(
            "Set an alarm for {time}.",
            "Wake me up at {time}.",
            "I have to get up at {time}, set an alarm.",
            "Please put the alarm at {time}.",
            "Make the alarm ring at {time}.",
            "Alarm at {time} tomorrow, please.",
            "Can you set the alarm to {time}?",
            "I want to wake up at {time}.",
            "Please wake me at {time} tomorrow.",
            "I need to be awake at {time}, please set an alarm.",
            "Let the alarm ring at {time}.",
            "Turn on an alarm for {time}.",
        ),
        held_out=_plain("Can you wake me at {time}?", "I need an alarm at {time}.", "Let my alarm go off at {time}."),
        result={"status": "set"},
        answer="Your alarm is set for {time}.",
    ),
    Intent(
        "send_message",
        {"contact": "contact", "text": "message"},
        train=_plain(
            "Send a message to {contact}: {text}",
            "Text {contact}: {text}",
            "Tell {contact} {text}.",
            "Let {contact} know: {text}.",
            'Write "{text}" to {contact}.',
            "Message {contact} and say {text}.",
            'Send {contact} the text "{text}".',
            'Please send "{text}" to {contact}.',
            'Can you message {contact}: "{text}"',
            "Please tell {contact} that {text}.",
            "Drop {contact} a message: {text}",
            "Send a line to {contact} saying {text}.",
            'Message {contact} "{text}", please.',
            "I want to text {contact}: {text}",
        ),
        held_out=_plain(
            'Please message {contact} "{text}".',
            "Text this to {contact}: {text}",
            "Send {contact} a message saying {text}.",
        ),
        result={"status": "sent"},
        answer="I sent your message to {contact}.",
    ),
    Intent(
        "play_music",
        {"artist": "artist"},
        train=(
            *_plain(
                "Play some {artist}.",
                "I want to hear {artist}.",
                "Put on {artist}.",
                "Can you play songs by {artist}?",
                "Let's listen to {artist}.",
                "Please play music by {artist}.",
                "I'd like to listen to {artist}.",
                "Start some {artist} songs.",
                "Can you put on music of {artist}?",
                "Play something by {artist} for me.",
                "I'm in the mood for {artist}.",
            ),
        ),
        held_out=(
            *_plain(
                "Start playing {artist}.", "I feel like listening to {artist}.", "Play music by {artist}, please."
            ),
        ),
        result={"status": "playing", "song": "track {n}"},
        answer="Playing track {n} by {artist}.",
    ),
    Intent(
        "book_table",
        {"restaurant": "restaurant", "guests": "guests"},
        train=_plain(
            "Book a table for {guests} at {restaurant}.",
            "Reserve a table at {restaurant} for {guests} people.",
            "We are {guests} people and want to eat at {restaurant}, book a table.",
            "I'd like a table for {guests} at {restaurant}.",
            "Make a reservation at {restaurant} for {guests} guests.",
            "Get us a table at {restaurant}, party of {guests}.",
            "Please reserve a table for {guests} people at {restaurant}.",
            "Can you book {restaurant} for {guests}?",
            "We need a table at {restaurant} for {guests} guests.",
            "I want to eat at {restaurant}, we are {guests}.",
            "Book {restaurant} for {guests} people, please.",
            "Can you get a table for {guests} at {restaurant}?",
        ),
        held_out=_plain(
            "Can you reserve {restaurant} for {guests} of us?",
            "Please book {restaurant} for {guests} guests.",
            "I need a table for {guests} people at {restaurant}.",
        ),
        result={"status": "booked", "code": "T{n}"},
        answer="Your table at {restaurant} is booked, code T{n}.",
    ),
    Intent(
        "search_flights",
        {"origin": "city", "destination": "city"},
        train=_plain(
            "Find flights from {origin} to {destination}.",
            "I want to fly from {origin} to {destination}.",
            "Are there any flights to {destination} from {origin}?",
            "Search for a flight from {origin} to {destination}, please.",
            "Show me flights that leave {origin} for {destination}.",
            "I'm in {origin} and need a plane to {destination}.",
            "Please look for flights to {destination} from {origin}.",
            "Can you find me a flight from {origin} to {destination}?",
            "How do I get from {origin} to {destination} by plane?",
            "I need to fly to {destination} from {origin}.",
            "Get flights from {origin} to {destination}.",
            "Which flights leave from {origin} to {destination}?",
            "Look for a plane to {destination} leaving {origin}.",
        ),
        held_out=_plain(
            "Look up flights to {destination} leaving from {origin}.",
            "How can I fly from {origin} to {destination}?",
            "Get me a flight from {origin} to {destination}.",
        ),
        result={"flight": "DF{n}", "price": "120"},
        answer="Flight DF{n} goes from {origin} to {destination} for 120.",
    ),
    Intent(
        "create_event",
        {"title": "title", "date": "date"},
        train=_plain(
            "Add {title} to my calendar on {date}.",
            "Put {title} in the calendar for {date}.",
            "Create an event: {title} on {date}.",
            "Schedule {title} for {date}.",
            "I have {title} on {date}, add it to my calendar.",
            "Mark {date} in my calendar: {title}.",
            "Please add {title} on {date} to the calendar.",
            "Can you make an event for {title} on {date}?",
            "New event on {date}: {title}.",
            "Please put {title} in my calendar on {date}.",
            "Make a calendar entry: {title}, {date}.",
            "Enter {title} into my calendar for {date}.",
            "I want {title} in my calendar on {date}.",
        ),
        held_out=_plain(
            "Please enter {title} in my calendar on {date}.",
            "Make a calendar event for {title} on {date}.",
            "Put {title} on my calendar, {date}.",
        ),
        result={"status": "created"},
        answer="I added {title} on {date}.",
    ),
    Intent(
        "translate_text",
        {"text": "phrase", "language": "language"},
        train=_plain(
            'Translate "{text}" into {language}.',
            'How do you say "{text}" in {language}?',
            "Translate to {language}: {text}",
            'What is "{text}" in {language}?',
            'I need "{text}" in {language}.',
            "Put this into {language}: {text}",
            'Please translate "{text}" into {language}.',
            'Can you say "{text}" in {language}?',
            "Translate this into {language}, please: {text}",
            'Give me "{text}" in {language}.',
            'What is the {language} for "{text}"?',
            'I want to say "{text}" in {language}.',
            'Tell me the {language} translation of "{text}".',
        ),
        held_out=_plain(
            'Give me the {language} translation of "{text}".',
            'Say "{text}" in {language}.',
            "Please translate this to {language}: {text}",
        ),
    ),
    Intent(
        "get_stock_price",
        {"symbol": "symbol"},
        train=_plain(
            "What's the stock price of {symbol}?",
            "How much is one share of {symbol}?",
            "Check the price of {symbol} stock.",
            "How is {symbol} trading?",
            "Give me the latest quote for {symbol}.",
            "What is {symbol} worth on the market?",
            "Please look up the price of {symbol} shares.",
            "Can you check the {symbol} stock price?",
            "What do {symbol} shares cost today?",
            "How are {symbol} stocks doing?",
            "Tell me the share price of {symbol}.",
            "I want to know what {symbol} stock is at now.",
            "Look up {symbol} on the stock market.",
        ),
        held_out=_plain(
            "Look up the {symbol} share price.", "What does {symbol} stock cost now?", "How are {symbol} shares doing?"
        ),
        result={"price": "{n}"},
        answer="{symbol} is at {n}.",
    ),
    Intent(
        "add_to_list",
        {"item": "grocery"},
        train=_plain(
            "Add {item} to my shopping list.",
            "Put {item} on the shopping list.",
            "We're out of {item}, put it on the shopping list.",
            "I have to buy {item}, add it to the list.",
            "Can you put {item} on my shopping list?",
            "Please write {item} on the shopping list.",
            "Note {item} on my shopping list.",
            "We need {item}, add that to the shopping list.",
            list="shopping",
        ),
        held_out=_plain(
            "Can you add {item} to the shopping list?", "Write {item} on my shopping list.", list="shopping"
        ),
        result={"status": "added"},
        answer="I added {item} to your shopping list.",
    ),
    Intent(
        "add_to_list",
        {"item": "chore"},
        train=_plain(
            "Add {item} to my todo list.",
            "Put {item} on my todo list.",
            "I still have to {item}, add it to my todos.",
            "New todo: {item}.",
            "Can you put {item} on the todo list?",
            "Please write {item} on my todos.",
            "Note {item} on my todo list.",
            "I must {item}, add that to my todo list.",
            list="todo",
        ),
        held_out=_plain("Can you add {item} to my todos?", "Write {item} on my todo list.", list="todo"),
        result={"status": "added"},
        answer="I added {item} to your todo list.",
    ),
)
"""What can be asked of every tool of the catalogue."""


class Joint(NamedTuple):
    """How two requests become one; `lower` when the second one begins inside a sentence."""

    text: str
    lower: bool = False


JOINTS_TRAIN = (
    Joint("{first} Also, {second}", lower=True),
    Joint("{first} And {second}", lower=True),
    Joint("{first} {second}"),
    Joint("Two things. {first} {second}"),
    Joint("{first} Then {second}", lower=True),
    Joint("I need two things. {first} {second}"),
    Joint("{first} After that, {second}", lower=True),
    Joint("{first} While you are at it, {second}", lower=True),
    Joint("Please do both. {first} {second}"),
    Joint("{first} In addition, {second}", lower=True),
    Joint("{first} One more thing, {second}", lower=True),
)
JOINTS_HELD_OUT = (
    Joint("{first} Besides that, {second}", lower=True),
    Joint("Do both of these for me. {first} {second}"),
    Joint("{first} At the same time, {second}", lower=True),
)
