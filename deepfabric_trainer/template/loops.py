"""Spans of messages, found by watching the template's own loops.

The body of every loop of the template gets a bracket at its start and at its end. It is written when the loop's value
is one of the messages, compared by identity, so that it holds also where the template slices the list or transforms a
message's text. The caller compares what is left without the brackets with the template's own rendering.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

from deepfabric_trainer.template.brackets import Bracket

_FIND, _OPEN, _CLOSE, _INDEX = "_dft_find", "_dft_open", "_dft_close", "_dft_index"


@lru_cache(maxsize=32)
def compile_with_brackets(source: str) -> Callable[[list[dict[str, Any]], Mapping[str, Any]], str]:
    """Compile a template so that it writes brackets around what each message gives.

    The environment is the sandboxed one that `transformers` renders chat templates in: templates come from strangers.

    Args:
        source (`str`): The chat template.
    Returns:
        `Callable`: Renders messages with the given variables; the text holds the brackets.
    """
    environment = _compile_jinja_template(source).environment
    tree = environment.parse(source)
    for loop in list(tree.find_all(nodes.For)):
        _instrument(loop)
    template = jinja2.Template.from_code(environment, environment.compile(tree), environment.make_globals(None))

    def render(messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        index_of = {id(message): index for index, message in enumerate(messages)}

        def find(*values: Any) -> int | None:
            return next((index_of[id(value)] for value in values if id(value) in index_of), None)

        return template.render(
            **variables,
            messages=messages,
            **{
                _FIND: find,
                _OPEN: lambda index: "" if index is None else Bracket.MESSAGE.opening(index),
                _CLOSE: lambda index: "" if index is None else Bracket.MESSAGE.closing(index),
            },
        )

    return render


def _instrument(loop: nodes.For) -> None:
    """Put brackets at both ends of the loop's body, and before each way out of it."""
    targets = [name.name for name in loop.target.find_all(nodes.Name)]
    if isinstance(loop.target, nodes.Name):
        targets = [loop.target.name]
    find = nodes.Assign(nodes.Name(_INDEX, "store"), _call(_FIND, targets))
    _close_before_jumps(loop.body)
    loop.body = [find, _output(_OPEN), *loop.body, _output(_CLOSE)]
    for node in loop.body:
        nodes.Node.set_lineno(node, loop.lineno, override=False)


def _close_before_jumps(body: list[nodes.Node]) -> None:
    for position in range(len(body) - 1, -1, -1):
        node = body[position]
        if isinstance(node, nodes.Continue | nodes.Break):
            body.insert(position, _output(_CLOSE).set_lineno(node.lineno))
        elif isinstance(node, nodes.If):
            _close_before_jumps(node.body)
            _close_before_jumps(node.else_)
            for branch in node.elif_:
                _close_before_jumps(branch.body)


def _output(function: str) -> nodes.Node:
    return nodes.Output([_call(function, [_INDEX])])


def _call(function: str, names: list[str]) -> nodes.Expr:
    arguments = [nodes.Name(name, "load") for name in names]
    return nodes.Call(nodes.Name(function, "load"), arguments, [], None, None)
