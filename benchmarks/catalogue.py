"""Tool catalogues and tool-calling conversations for the benchmarks, made from a seed.

They look like the real ones: a tool has a name, two sentences, and three to six parameters with descriptions, enums,
lists and objects, 150 to 250 tokens of Qwen's tokenizer in all; a conversation asks, calls, gets a result and answers.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]

_VERBS = {
    "search": "Searches the {} that match all filters",
    "get": "Reads one of the {} with all its fields",
    "create": "Creates a new entry among the {} and returns its id",
    "update": "Changes the given fields of one of the {}",
    "archive": "Moves {} to the archive for thirty days",
    "export": "Writes {} to a file and returns a link to it",
    "count": "Counts the {} in a period, by the given field",
    "assign": "Assigns {} to a person or to a team",
    "compare": "Compares {} of two periods with each other",
    "schedule": "Plans {} for a later time, with a reminder",
    "approve": "Approves {} that wait for a decision",
    "validate": "Checks {} against the rules of the account",
}
_RESOURCES = (
    *("invoices", "purchase_orders", "shipments", "support_tickets", "calendar_events", "customer_accounts"),
    *("product_reviews", "flight_bookings", "hotel_reservations", "insurance_claims", "payroll_records"),
    *("sensor_readings", "weather_forecasts", "stock_positions", "bank_transfers", "medical_appointments"),
    *("lab_results", "job_applications", "course_enrollments", "library_loans", "delivery_routes"),
    *("warehouse_items", "maintenance_orders", "marketing_campaigns", "email_drafts", "chat_channels"),
    *("source_repositories", "build_pipelines", "access_policies", "audit_logs", "rental_contracts"),
)
_USES = (
    "Use it when the user asks about {} and names a criterion.",
    "Needs the permission to read {}.",
    "Call it once for each request about {}; every call is billed.",
    "What it says about {} may be five minutes old.",
    "Prefer it to a general search for {}.",
)
_NAMES = ("Ada", "Bruno", "Chandra", "Dilek", "Emil", "Fatou", "Greta", "Hiro", "Ines", "Jonas", "Kwame", "Lucía")
_SURNAMES = ("Almeida", "Brandt", "Castillo", "Dubois", "Eriksen", "Fischer", "Gupta", "Haddad", "Ivanova", "Jensen")
_CITIES = ("Lisbon", "Nairobi", "Osaka", "Zürich", "Montréal", "Seoul", "Bogotá", "Leipzig", "Tromsø", "Perth")
_TOPICS = ("late delivery", "wrong amount", "renewal", "new contact", "refund", "damage", "upgrade", "audit", "travel")
_FORMATS = ("csv", "json", "xlsx", "parquet", "pdf")
_REGIONS = ("emea", "apac", "north_america", "latin_america")
_STATES = ("open", "pending", "blocked", "in_review", "approved", "rejected", "closed", "archived")


def make_tools(count: int, seed: int = 0) -> list[Json]:
    """Return so many different tools in OpenAI's form; the first ones do not depend on the count.

    Args:
        count (`int`): At most 372, so that no two have the same name.
        seed (`int`, *optional*, defaults to 0): Makes them.
    """
    names = [(verb, resource) for verb in _VERBS for resource in _RESOURCES]
    if count > len(names):
        raise ValueError(f"there are {len(names)} different tools, not {count}")
    rng = random.Random(f"tools {seed}")
    rng.shuffle(names)
    return [_tool(verb, resource, rng) for verb, resource in names[:count]]


def briefly(tools: Sequence[Json]) -> list[Json]:
    """Return the tools with the required parameters only, without descriptions: less than half of the tokens."""
    return [{**tool, "function": {**tool["function"], "parameters": _bare(tool)}} for tool in tools]


def _bare(tool: Json) -> Json:
    parameters = tool["function"]["parameters"]
    kept = {name: parameters["properties"][name] for name in parameters["required"]}
    bare = {
        name: {key: value for key, value in schema.items() if key != "description"} for name, schema in kept.items()
    }
    return {**parameters, "properties": bare}


def make_rows(count: int, *, catalogue: Sequence[Json], tools_per_row: int, seed: int = 0) -> list[Json]:
    """Return rows of `messages` and `tools`: a question, a valid call of one of the tools, its result, an answer.

    Args:
        count (`int`): The rows; the first ones do not depend on it.
        catalogue (`Sequence[dict]`): The tools to take from.
        tools_per_row (`int`): How many a row lists. All of the catalogue: all rows list the same, in one order;
            fewer: each row draws its own.
        seed (`int`, *optional*, defaults to 0): Makes them.
    """
    rng = random.Random(f"rows {seed}")
    whole = list(catalogue)
    rows = []
    for number in range(count):
        tools = whole if tools_per_row == len(whole) else rng.sample(whole, tools_per_row)
        rows.append({"messages": _conversation(rng.choice(tools), number, rng), "tools": tools})
    return rows


def as_text(rows: Sequence[Json]) -> list[Json]:
    """Return rows whose tools are JSON text, the form that TRL's documentation has for tools that differ."""
    texts: dict[tuple[int, ...], str] = {}
    written = []
    for row in rows:
        key = tuple(map(id, row["tools"]))
        if key not in texts:
            texts[key] = json.dumps(row["tools"], ensure_ascii=False)
        written.append({**row, "tools": texts[key]})
    return written


def _tool(verb: str, resource: str, rng: random.Random) -> Json:
    words = resource.replace("_", " ")
    required, *others = rng.sample(list(_PARAMETERS), rng.choice((2, 2, 3, 4)))
    # One nested parameter in each tool: they are what makes real schemas long.
    names = [required, *others, *rng.sample(list(_NESTED), 1)]
    makers = _PARAMETERS | _NESTED
    parameters = {
        "type": "object",
        "properties": {name: makers[name](words, rng) for name in names},
        "required": [required, *(name for name in others if rng.random() < 0.4)],
    }
    description = f"{_VERBS[verb].format(words)}. {rng.choice(_USES).format(words)}"
    return {
        "type": "function",
        "function": {"name": f"{verb}_{resource}", "description": description, "parameters": parameters},
    }


def _text(description: str, **more: Any) -> Callable[[str, random.Random], Json]:
    return lambda words, rng: {"type": "string", "description": description.format(words), **more}


def _enum(description: str, values: Sequence[str], count: int) -> Callable[[str, random.Random], Json]:
    return lambda words, rng: {
        "type": "string",
        "enum": rng.sample(list(values), count),
        "description": description.format(words),
    }


_PARAMETERS: dict[str, Callable[[str, random.Random], Json]] = {
    "query": _text("Words to look for in the {}."),
    "id": _text("The id of the entry, such as ID-20417."),
    "owner": _text("Who is responsible for the {}."),
    "city": _text("The city that the {} belong to."),
    "date_from": _text("First day of the period.", format="date"),
    "date_to": _text("Last day of the period; today if it is left out.", format="date"),
    "comment": _text("A remark that all who see the {} can read."),
    "status": _enum("Only {} in this state.", _STATES, 4),
    "file_format": _enum("How the {} are written out.", _FORMATS, 3),
    "region": _enum("The region whose {} are meant.", _REGIONS, 3),
    "limit": lambda words, rng: {
        "type": "integer",
        "minimum": 1,
        "maximum": rng.choice((50, 100, 500)),
        "description": f"The most {words} to return.",
    },
    "amount": lambda words, rng: {
        "type": "number",
        "minimum": 0,
        "description": f"The amount of the {words} in euros.",
    },
    "notify": lambda words, rng: {"type": "boolean", "description": f"Whether the owners of the {words} are told."},
}
_NESTED: dict[str, Callable[[str, random.Random], Json]] = {
    "tags": lambda words, rng: {
        "type": "array",
        "items": {"type": "string"},
        "description": f"Labels that the {words} must have.",
    },
    "contact": lambda words, rng: {
        "type": "object",
        "description": f"Who is asked about the {words}.",
        "properties": {
            "name": {"type": "string"},
            "email": {"type": "string"},
            "urgent": {"type": "boolean"},
        },
        "required": ["name"],
    },
    "sort": lambda words, rng: {
        "type": "array",
        "description": f"The order of the {words}.",
        "items": {
            "type": "object",
            "properties": {
                "field": {"type": "string", "enum": rng.sample(("created", "amount", "owner", "status", "city"), 3)},
                "direction": {"type": "string", "enum": ["ascending", "descending"]},
            },
            "required": ["field"],
        },
    },
}


def _conversation(tool: Json, number: int, rng: random.Random) -> list[Json]:
    function = tool["function"]
    verb, _, words = function["name"].replace("_", " ").partition(" ")
    arguments = _value("", function["parameters"], rng)
    owner, city = _person(rng), rng.choice(_CITIES)
    found, entry, topic = rng.randint(1, 400), f"ID-{rng.randint(10_000, 99_999)}", rng.choice(_TOPICS)
    result = {"found": found, "first": entry, "owner": owner}
    call = {"name": function["name"], "arguments": arguments}
    asks = (
        f"Please {verb} the {words} of {owner} in {city}; it is about a {topic}.",
        f"{owner} from {city} wants us to {verb} {words} because of a {topic}.",
        f"I need to {verb} {words} for {city}. It is for {owner}, about a {topic}.",
    )
    answers = (
        f"Done: {found} {words} match; the first is {entry}.",
        f"I found {found} {words} in {city}; the first is {entry}.",
        f"That worked. {entry} is up to date, and {found} {words} remain.",
    )
    return [
        {"role": "user", "content": rng.choice(asks)},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
        },
        {
            "role": "tool",
            "tool_call_id": f"call_{number}",
            "name": function["name"],
            "content": json.dumps(result, ensure_ascii=False),
        },
        {"role": "assistant", "content": rng.choice(answers)},
    ]


def _value(name: str, schema: Json, rng: random.Random) -> Any:
    """Return a value that the schema of a parameter admits."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        required = schema["required"]
        wanted = [key for key in schema["properties"] if key in required or rng.random() < 0.5]
        return {key: _value(key, schema["properties"][key], rng) for key in wanted}
    if kind == "array":
        return [_value("tag", schema["items"], rng) for _ in range(rng.randint(1, 3))]
    if kind == "integer":
        return rng.randint(schema["minimum"], schema["maximum"])
    if kind == "number":
        return round(rng.uniform(1, 5000), 2)
    if kind == "boolean":
        return rng.random() < 0.5
    if schema.get("format") == "date":
        return f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    texts = {
        "city": rng.choice(_CITIES),
        "owner": _person(rng),
        "name": _person(rng),
        "id": f"ID-{rng.randint(1, 9999)}",
    }
    return texts.get(name, f"{rng.choice(_TOPICS)} {rng.randint(1, 99)}")


def _person(rng: random.Random) -> str:
    return f"{rng.choice(_NAMES)} {rng.choice(_SURNAMES)}"
