"""Calls that are hard to write in one notation or another."""

from typing import Any

from tests.fixtures.tiny import call

CASES: dict[str, list[dict[str, Any]]] = {
    "one call": [call("get_weather", city="Rome", days=3)],
    "two calls": [call("get_weather", city="Rome"), call("send_mail", to="Ann", text="Rain.")],
    "same call twice": [call("get_weather", city="Rome")] * 2,
    "no arguments": [call("no_arguments")],
    "none, then some": [call("no_arguments"), call("get_weather", city="Oslo"), call("no_arguments")],
    "types": [call("typed", count=7, share=2.5, negative=-1, yes=True, no=False, nothing=None)],
    "nested": [call("typed", tree={"a": {"b": [1, 2.5, None, True, {"c": {}}]}}, rows=[[1], []])],
    "nested texts": [call("typed", tree={"k": 'it\'s "so"\n\\ {[(,'}, rows=["a, b", "c=d", "</x>"])],
    "empty values": [call("typed", text="", tree={}, rows=[])],
    "unicode": [call("send_mail", to="Köln 🌧", text="\u2028 ß 中文")],
    "quotes": [call("send_mail", to="It's", text='she said "no", it\'s')],
    "lines": [call("send_mail", to="a\nb", text="\n x \n\n")],
    "backslashes": [call("send_mail", to="C:\\new\\table", text="\\d+\\")],
    "numbers as text": [call("send_mail", to="75001", text="007")],
    "words as text": [call("send_mail", to="true", text="null")],
    "json as text": [call("send_mail", to='{"a": 1}', text="[1, 2]")],
    "tags in text": [call("send_mail", to="</tool_call>", text='<tool_call>\n{"name": "x"} </parameter> <think>')],
    "brackets in text": [call("send_mail", to="a), b(c='d'", text="{x:y}, [z] = }")],
    "odd names": [call("a.b-c_d", **{"user-id": "x", "per cent": 1})],
}


def _tool(name: str, **types: str) -> dict[str, Any]:
    properties = {key.replace("__", "-"): {"type": kind, "description": "An argument."} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}


CASE_TOOLS = [
    _tool("get_weather", city="string", days="integer"),
    _tool("send_mail", to="string", text="string"),
    _tool("no_arguments"),
    _tool(
        "typed",
        **{"count": "integer", "share": "number", "negative": "integer", "yes": "boolean", "no": "boolean"},
        **{"nothing": "null", "tree": "object", "rows": "array", "text": "string"},
    ),
    _tool("a.b-c_d", user__id="string"),
]
