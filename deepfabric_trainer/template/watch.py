"""What a template looks for in the texts that it is given, read from its source.

Templates branch on texts: `'</think>' in content`, `content.startswith('<tool_response>')`. Two conversations of one
shape, in whose texts nothing of this is found, go the same way through the template.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import nodes

from deepfabric_trainer.template.compiling import compiled

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
_MEASURES = re.compile(
    r"length|count|wordcount|first|last|int|float|sort|unique|min|max|sum|random|reverse|batch|slice|groupby"
)
"""Filters whose result tells texts apart in which nothing is looked for."""
_JUDGING = re.compile(r"upper|lower|sameas|eq|equalto|ne|lt|lessthan|le|gt|greaterthan|ge|in|[=!<>]=|[<>]")
"""Tests that do so."""
_MEASURING = re.compile(r"is[a-z]+|r?find|r?index|count|__\w+__")
"""Methods of texts that do so."""
_TEXT_MAKING = ("tojson", "string", "join", "map")
_CONTROL = r"<[|\uff5c][^<>\s]{1,60}[|\uff5c]>|</s>"
"""What is read as a stop token behind a turn, of whatever tokenizer."""
_KEY = re.compile(r"[a-z_]+")
_PLAIN_NAMES = re.compile(
    r"role|loop|index|idx|depth|indent|format"
    r"|(^|_)(id|ids|name|names|key|keys|field|param|type|types|turn|count|length|seen|nd|tns|nslist|i|j|k|n|num)(_|$|\d)"
)
"""Names of what is no text of its own: roles, positions, names, the keys of schemas."""


@dataclass(frozen=True)
class Watch:
    """What a template looks for.

    Args:
        inside (`re.Pattern[str]`): Matches in texts that hold something that the template looks for.
        whole (`frozenset[str]`): The texts that the template compares others with.
        written (`tuple[str, ...]`): What the template writes, in pieces without the white space around them. An answer
            that begins with one may read as if it went on from another prompt.
        is_clear (`bool`): Whether that is all: it branches neither on the lengths nor on single characters of texts.
    """

    inside: re.Pattern[str]
    whole: frozenset[str]
    written: tuple[str, ...]
    is_clear: bool


@lru_cache(maxsize=64)
def watch_of(source: str) -> Watch:
    """Return what a template looks for; a template that cannot be read is not clear."""
    try:
        tree = compiled(source).environment.parse(source)
    except Exception:  # rendering says what is wrong
        return Watch(re.compile("(?!)"), frozenset(), (), False)
    inside, whole = {"</think"}, set[str]()
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        contained, compared = _looks_for(node)
        inside |= {text for text in contained if text}
        whole |= compared
    pattern = "|".join((*map(re.escape, sorted(inside, key=len, reverse=True)), _CONTROL))
    is_clear = not any(_measures(test) for test in _tests(tree)) and not _tells_texts_apart(tree)
    return Watch(re.compile(pattern), frozenset(whole), _written(tree), is_clear)


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


def _written(tree: nodes.Node) -> tuple[str, ...]:
    pieces = [node.data.strip() for node in tree.find_all(nodes.TemplateData)]
    pieces += [text.strip() for text in _texts(tree)]
    return tuple({piece for piece in pieces if piece and not _KEY.fullmatch(piece)})


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


def _tells_texts_apart(tree: nodes.Node) -> bool:
    """Tell whether a template compares texts with each other, or makes numbers or flags of them, wherever it does."""
    asked = _asked_whether_empty(tree)
    return (
        any(
            _MEASURES.fullmatch(one.name) and id(one) not in asked and one.node is not None and not _is_plain(one.node)
            for one in tree.find_all(nodes.Filter)
        )
        or any(_JUDGING.fullmatch(one.name) and not _is_plain(one.node) for one in tree.find_all(nodes.Test))
        or any(
            isinstance(one.node, nodes.Getattr)
            and _MEASURING.fullmatch(one.node.attr) is not None
            and not _is_plain(one.node.node)
            for one in tree.find_all(nodes.Call)
        )
        or any(_compares_texts(one) for one in tree.find_all(nodes.Compare))
    )


def _asked_whether_empty(tree: nodes.Node) -> set[int]:
    """Return the expressions of which only matters whether they are empty, or 0: the shape has that of every text."""
    asked: list[nodes.Node] = [node.test for node in tree.find_all(nodes.If)]
    asked += [node.test for node in tree.find_all(nodes.CondExpr)]
    asked += [node.node for node in tree.find_all(nodes.Not)]
    asked += [side for node in tree.find_all((nodes.And, nodes.Or)) for side in (node.left, node.right)]
    for compare in tree.find_all(nodes.Compare):
        operands = [compare.expr, *(operand.expr for operand in compare.ops)]
        if any(isinstance(operand, nodes.Const) and operand.value == 0 for operand in operands):
            asked += operands
    return {id(node) for node in asked if isinstance(node, nodes.Filter) and node.name in ("length", "count")}


def _compares_texts(compare: nodes.Compare) -> bool:
    """Tell whether a comparison is of two texts, or asks which of two values comes first."""
    operands = [compare.expr, *(operand.expr for operand in compare.ops)]
    texts = sum(not _is_plain(operand) for operand in operands)
    is_of_order = any(operand.op in ("lt", "lteq", "gt", "gteq") for operand in compare.ops)
    written = any(isinstance(operand, nodes.Const) and isinstance(operand.value, str) for operand in operands)
    return texts > 1 or (is_of_order and written)


def _is_plain(node: nodes.Node) -> bool:
    """Tell whether the value of an expression is written in the template, or is known to be no text of a message."""
    if isinstance(node, nodes.BinExpr):
        return _is_plain(node.left) and _is_plain(node.right)
    if isinstance(node, nodes.UnaryExpr):
        return _is_plain(node.node)
    if isinstance(node, nodes.Filter) and node.name in _TEXT_MAKING:
        names = [one.value.value for one in node.kwargs if isinstance(one.value, nodes.Const)]
        return bool(names) and all(_PLAIN_NAMES.search(str(name)) for name in names)
    if (isinstance(node, nodes.Filter) and node.name in ("first", "last")) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, int)
    ):
        return False  # such as a whole message
    if isinstance(node, nodes.Const | nodes.List | nodes.Tuple | nodes.TemplateData | nodes.Test | nodes.Compare):
        return True
    return _is_no_text(node) or _PLAIN_NAMES.search(_name(node)) is not None


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
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get" and node.args:
        return str(node.args[0].value) if isinstance(node.args[0], nodes.Const) else ""
    return ""
