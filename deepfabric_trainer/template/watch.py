"""What a template looks for in the texts that it is given, read from its source.

Templates branch on texts: `'</think>' in content`, `content.startswith('<tool_response>')`. Two conversations of one
shape, in whose texts nothing of this is found, go the same way through the template.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import nodes
from transformers.utils import chat_template_utils

_STRIPPING = ("strip", "lstrip", "rstrip", "trim")
_OF_NAMES = ("join", "default", "d", "map", "selectattr", "rejectattr", "groupby", "sort", "dictsort", "tojson")
"""Filters whose arguments are names of attributes, or written out."""
_OF_KEYS = ("get", "pop", "append")
"""Methods whose arguments are names of keys, or kept."""
_NOT_TEXTS = re.compile(
    r"(messages|tools|tool_calls|calls|functions|documents"
    r"|type|enum|required|properties|items|oneOf|anyOf|parameters)$"
)
"""Names of what has a length, or items, in templates without being a text that is written out as a whole."""
_IDS = re.compile(r"(^|_)id$")
_TEXT_NAMES = re.compile(r"content|text|reason|think|str")


@dataclass(frozen=True)
class Watch:
    """What a template looks for.

    Args:
        inside (`re.Pattern[str]`): Matches in texts that hold something that the template looks for.
        whole (`frozenset[str]`): The texts that the template compares others with.
        is_clear (`bool`): Whether that is all: it branches neither on the lengths nor on single characters of texts.
    """

    inside: re.Pattern[str]
    whole: frozenset[str]
    is_clear: bool


@lru_cache(maxsize=64)
def watch_of(source: str) -> Watch:
    """Return what a template looks for; a template that cannot be read is not clear."""
    try:
        tree = chat_template_utils._compile_jinja_template(source).environment.parse(source)
    except Exception:  # rendering says what is wrong
        return Watch(re.compile("(?!)"), frozenset(), False)
    inside, whole = {"</think"}, set[str]()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        contained, compared = _looks_for(node)
        inside |= {text for text in contained if text}
        whole |= compared
    pattern = "|".join(map(re.escape, sorted(inside, key=len, reverse=True)))
    return Watch(re.compile(pattern), frozenset(whole), not any(_measures(test) for test in _tests(tree)))


def _looks_for(node: nodes.Node) -> tuple[set[str], set[str]]:
    """Return what an expression looks for inside texts, and what it compares texts with."""
    if isinstance(node, nodes.Compare):
        held = [operand.expr for operand in node.ops if operand.op in ("in", "notin")]
        texts = _texts(node)
        if not held or any(isinstance(one, nodes.List | nodes.Tuple) for one in held):
            return set(), texts
        # A word is looked for among the keys of an object, as in `'tool_calls' in message`.
        if all(isinstance(one, nodes.Name) and not _TEXT_NAMES.search(one.name) for one in held):
            texts = {text for text in texts if not text.isidentifier()}
        return texts, set()
    arguments = {text for argument in getattr(node, "args", ()) for text in _texts(argument)}
    if isinstance(node, nodes.Filter):
        if node.name in _OF_NAMES:
            return set(), set()
        return {text for text in arguments if node.name not in _STRIPPING or text.strip()}, set()
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        if node.node.attr in _OF_KEYS:
            return set(), set()
        return {text for text in arguments if node.node.attr not in _STRIPPING or text.strip()}, set()
    return set(), arguments


def _texts(node: nodes.Node) -> set[str]:
    constants = [*([node] if isinstance(node, nodes.Const) else []), *node.find_all(nodes.Const)]
    return {constant.value for constant in constants if isinstance(constant.value, str)}


def _tests(tree: nodes.Node) -> Iterator[nodes.Node]:
    """Go over the expressions that decide which way a template goes."""
    for node in tree.find_all((nodes.If, nodes.CondExpr, nodes.For)):
        test = getattr(node, "test", None)
        if test is not None:
            yield test
    # What is put into a variable may decide later.
    for node in tree.find_all(nodes.Assign):
        yield node.node
    yield from tree.find_all((nodes.And, nodes.Or, nodes.Not, nodes.Compare))


def _measures(test: nodes.Node) -> bool:
    """Tell whether an expression compares the length of a text with a number, or looks at single characters."""
    for compare in [*([test] if isinstance(test, nodes.Compare) else []), *test.find_all(nodes.Compare)]:
        operands = [compare.expr, *(operand.expr for operand in compare.ops)]
        if any(isinstance(operand, nodes.Const) and operand.value == 0 for operand in operands):
            continue
        measured = [one.node for operand in operands for one in _filters(operand) if one.name in ("length", "count")]
        if any(not _is_no_text(node) and not _IDS.search(_name(node)) for node in measured):
            return True
        for operand in operands:
            items = [*([operand] if isinstance(operand, nodes.Getitem) else []), *operand.find_all(nodes.Getitem)]
            if any(_is_place(item.arg) and not _is_no_text(item.node) for item in items):
                return True
    return False


def _filters(node: nodes.Node) -> list[nodes.Filter]:
    return [*([node] if isinstance(node, nodes.Filter) else []), *node.find_all(nodes.Filter)]


def _is_place(argument: nodes.Node) -> bool:
    return isinstance(argument, nodes.Slice) or (isinstance(argument, nodes.Const) and isinstance(argument.value, int))


def _is_no_text(node: nodes.Node | None) -> bool:
    return bool(_NOT_TEXTS.search(_name(node)))


def _name(node: nodes.Node | None) -> str:
    """Return the last name of an expression such as `message.tool_calls` or `message['tool_calls']`."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return str(node.arg.value) if isinstance(node.arg.value, str) else _name(node.node)
    if isinstance(node, nodes.Filter):
        return _name(node.node)
    return ""
