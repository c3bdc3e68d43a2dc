"""The demo's data: seeded rows in the form that DeepFabric writes, for training and held out.

A row is `{"messages": [...], "tools": [the whole catalogue], "kind": ...}` and of one of four kinds:

- `single`: a request and one call;
- `parallel`: two requests in one turn and two calls in one answer;
- `result`: a call, the tool's result, and an answer that uses it;
- `none`: small talk, or a request that no tool serves; the answer is text and there is no call.

The held-out split shares no phrasing with training (requests, the way two of them are joined, small talk) and no value
of an open argument (cities, amounts, texts, times, ...). Only what is closed is common to both: the tools, and the
choices of an `enum`. The split is made by hand in `values`, `phrasings` and `talk`, and tested.
"""

import json
import random
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from examples.demo.catalogue import TOOLS
from examples.demo.phrasings import (
    INTENTS,
    JOINTS_HELD_OUT,
    JOINTS_TRAIN,
    Intent,
    Joint,
    Phrasing,
)
from examples.demo.talk import (
    SMALL_TALK_HELD_OUT,
    SMALL_TALK_TRAIN,
    TALK_SLOTS,
    UNSERVED_HELD_OUT,
    UNSERVED_TRAIN,
    Talk,
)
from examples.demo.values import POOLS, Value

Row = dict[str, Any]
Kind = Literal["single", "parallel", "result", "none"]

TRAINING_SHARES: dict[Kind, float] = {"single": 0.37, "parallel": 0.35, "result": 0.03, "none": 0.25}
HELD_OUT_SHARES: dict[Kind, float] = {"single": 0.6, "parallel": 0.15, "none": 0.25}


def training_rows(count: int, seed: int) -> list[Row]:
    """Conversations to train on, in random order; requests are all different, small talk comes again.

    Args:
        count (`int`): How many; the kinds have the shares of `TRAINING_SHARES`, whatever the count.
        seed (`int`): Equal seeds give equal rows.

    Returns:
        `list[dict]`: Rows with `messages`, `tools` and `kind`.
    """
    return _rows(_TRAIN, TRAINING_SHARES, count, random.Random(f"train {seed}"))


def held_out_rows(count: int, seed: int) -> list[Row]:
    """Prompts that training never showed, each followed by the assistant turn that is expected.

    Args:
        count (`int`): How many; the kinds have the shares of `HELD_OUT_SHARES`, whatever the count.
        seed (`int`): Equal seeds give equal rows.

    Returns:
        `list[dict]`: Rows with two `messages` (the user's, the expected assistant's), `tools` and `kind`. No prompt
        occurs twice.
    """
    return _rows(_HELD_OUT, HELD_OUT_SHARES, count, random.Random(f"held out {seed}"))


class _Split(NamedTuple):
    """What the rows of one split are made of."""

    phrasings: Callable[[Intent], tuple[Phrasing, ...]]
    values: Callable[[str], tuple[Value, ...]]
    joints: tuple[Joint, ...]
    small_talk: tuple[Talk, ...]
    unserved: tuple[Talk, ...]


_TRAIN = _Split(
    lambda intent: intent.train, lambda pool: POOLS[pool].train, JOINTS_TRAIN, SMALL_TALK_TRAIN, UNSERVED_TRAIN
)
_HELD_OUT = _Split(
    lambda intent: intent.held_out,
    lambda pool: POOLS[pool].held_out,
    JOINTS_HELD_OUT,
    SMALL_TALK_HELD_OUT,
    UNSERVED_HELD_OUT,
)

_TOOL_NAMES = tuple(tool["function"]["name"] for tool in TOOLS)
_ATTEMPTS = 1000


class _Request(NamedTuple):
    """One request in words, the call that serves it, and what it was made from."""

    text: str
    call: dict[str, Any]
    intent: Intent


def _rows(split: _Split, shares: dict[Kind, float], count: int, rng: random.Random) -> list[Row]:
    kinds = _kinds(shares, count)
    rng.shuffle(kinds)
    rows: list[Row] = []
    prompts: set[str] = set()
    # A round through all tools before one comes again: small sets, too, hold every tool.
    deck: list[str] = []
    for kind in kinds:
        for _ in range(_ATTEMPTS):
            messages = _conversation(kind, split, deck, rng)
            if messages[0]["content"] not in prompts or (kind == "none" and split is _TRAIN):
                break  # there is no end of requests, but of ways to say hello
        else:
            raise ValueError(f"the phrasings give no {count} different prompts; ask for fewer rows")
        prompts.add(messages[0]["content"])
        rows.append({"messages": messages, "tools": list(TOOLS), "kind": kind})
    return rows


def _kinds(shares: dict[Kind, float], count: int) -> list[Kind]:
    """Exactly `count` kinds in the given shares; what rounding leaves over goes to the first kind."""
    first, *others = shares
    kinds = [kind for kind in others for _ in range(round(shares[kind] * count))]
    return [first] * (count - len(kinds)) + kinds


def _conversation(kind: Kind, split: _Split, deck: list[str], rng: random.Random) -> list[dict[str, Any]]:
    if kind == "none":
        # Small talk is easy to tell from a request; what no tool serves is the half that matters more.
        talk = rng.choice(split.small_talk if rng.random() < 0.4 else split.unserved)
        values = _draw({slot: pool for slot, pool in TALK_SLOTS.items() if f"{{{slot}}}" in talk.request}, split, rng)
        return [_user(talk.request.format(**values)), {"role": "assistant", "content": talk.reply}]
    if kind == "parallel":
        first, second = _request(split, deck, rng), _request(split, deck, rng)
        joint = rng.choice(split.joints)
        text = joint.text.format(
            first=_closed(first.text), second=_lower_first(second.text) if joint.lower else second.text
        )
        return [_user(text), _calls(first, second)]
    request = _request(split, deck, rng, with_result=kind == "result")
    if kind == "single":
        return [_user(request.text), _calls(request)]
    slots = {**request.call["arguments"], "n": rng.randrange(2, 1000)}
    result = {
        key: slots["n"] if text == "{n}" else text.format(**slots) for key, text in request.intent.result.items()
    }
    return [
        _user(request.text),
        _calls(request),
        {"role": "tool", "tool_call_id": "call_1", "name": request.intent.tool, "content": json.dumps(result)},
        {"role": "assistant", "content": request.intent.answer.format(**slots)},
    ]


def _request(split: _Split, deck: list[str], rng: random.Random, with_result: bool = False) -> _Request:
    if not deck:
        deck.extend(rng.sample(_TOOL_NAMES, len(_TOOL_NAMES)))
    able = {intent.tool for intent in INTENTS if intent.result or not with_result}
    tool = next((name for name in reversed(deck) if name in able), None) or rng.choice(sorted(able))
    if tool in deck:
        deck.remove(tool)
    intent = rng.choice([intent for intent in INTENTS if intent.tool == tool])
    phrasing = rng.choice(split.phrasings(intent))
    named = {slot: pool for slot, pool in intent.slots.items() if f"{{{slot}}}" in phrasing.text}
    values = _draw(named, split, rng)
    return _Request(phrasing.text.format(**values), {"name": tool, "arguments": {**values, **phrasing.fixed}}, intent)


def _draw(slots: dict[str, str], split: _Split, rng: random.Random) -> dict[str, Value]:
    """Draw a value for every slot; slots that draw from one pool get different ones."""
    values: dict[str, Value] = {}
    for slot, pool in slots.items():
        values[slot] = rng.choice([value for value in split.values(pool) if value not in values.values()])
    return values


def _closed(sentence: str) -> str:
    """Return the sentence with a full stop if it has no end, so that another one can follow."""
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."


def _lower_first(sentence: str) -> str:
    """Return the sentence as it stands inside another one; "I" and what is no plain word keep their case."""
    first_word = sentence.split(" ", 1)[0]
    keep = first_word == "I" or first_word.startswith("I'") or not first_word.strip(".,:?!'").isalpha()
    return sentence if keep else sentence[0].lower() + sentence[1:]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _calls(*requests: _Request) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": f"call_{number}", "type": "function", "function": request.call}
            for number, request in enumerate(requests, start=1)
        ],
    }
