"""The tools of the demo: a personal assistant's catalogue in the OpenAI function format.

Every training batch and every prompt lists the whole catalogue, so the schemas are kept short: they are what a step of
the demo costs. Some tools are easy to confuse on purpose (a timer and an alarm, a table and a calendar event).
"""

from typing import Any

Tool = dict[str, Any]
"""`{"type": "function", "function": {"name", "description", "parameters": JSON schema}}`."""


def _tool(name: str, description: str, properties: dict[str, Any], optional: tuple[str, ...] = ()) -> Tool:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": [argument for argument in properties if argument not in optional],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TEXT = {"type": "string"}

TOOLS: tuple[Tool, ...] = (
    _tool(
        "get_weather",
        "Current weather in a city.",
        {"city": _TEXT, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        optional=("unit",),
    ),
    _tool(
        "convert_currency",
        "Convert an amount of money.",
        {"amount": {"type": "number"}, "from_currency": _TEXT, "to_currency": _TEXT},
    ),
    _tool("set_timer", "Start a countdown.", {"minutes": {"type": "integer"}}),
    _tool("set_alarm", "Ring at a time, HH:MM.", {"time": _TEXT}),
    _tool("send_message", "Send a text message.", {"contact": _TEXT, "text": _TEXT}),
    _tool("play_music", "Play songs by an artist.", {"artist": _TEXT}),
    _tool("book_table", "Reserve a table.", {"restaurant": _TEXT, "guests": {"type": "integer"}}),
    _tool("search_flights", "Find flights.", {"origin": _TEXT, "destination": _TEXT}),
    _tool("create_event", "Add an event to the calendar.", {"title": _TEXT, "date": _TEXT}),
    _tool("translate_text", "Translate a text.", {"text": _TEXT, "language": _TEXT}),
    _tool("get_stock_price", "Latest price of a share.", {"symbol": _TEXT}),
    _tool(
        "add_to_list",
        "Put an item on a list.",
        {"item": _TEXT, "list": {"type": "string", "enum": ["shopping", "todo"]}},
    ),
)
"""The whole catalogue, in the order in which every prompt lists it."""
