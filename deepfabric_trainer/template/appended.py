"""Whether a template appends its generation prompt to a conversation that it renders as ever, read from its source."""

from functools import lru_cache

from jinja2 import nodes

from deepfabric_trainer.template.compiling import compiled

_PROMPT = "add_generation_prompt"
_PLAIN = (
    *(nodes.If, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Test, nodes.CondExpr),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Concat),
)
"""What decides and writes by nothing but its names and constants."""


@lru_cache(maxsize=64)
def appends_prompt(source: str, switches: frozenset[str]) -> bool:
    """Tell whether what a template writes for `add_generation_prompt` comes last and is the same in any conversation.

    Args:
        source (`str`): The template.
        switches (`frozenset[str]`): Variables that this part may read, and no other part does.
    """
    try:
        tree = compiled(source).environment.parse(source)
    except Exception:  # rendering says what is wrong
        return False
    *before, last = tree.body or [tree]
    names = switches | {_PROMPT}
    if not isinstance(last, nodes.If) or last.elif_ or last.else_ or not _is_name(last.test):
        return False
    if tree.find((nodes.Extends, nodes.Block, nodes.Include, nodes.Import, nodes.FromImport)) is not None:
        return False
    if any(name.name in names for node in before for name in _names(node)):
        return False
    inside = list(last.find_all(nodes.Node))
    return all(isinstance(node, _PLAIN) for node in inside) and all(name.name in names for name in _names(last))


def _is_name(test: nodes.Node) -> bool:
    return isinstance(test, nodes.Name) and test.name == _PROMPT


def _names(node: nodes.Node) -> list[nodes.Name]:
    return [*([node] if isinstance(node, nodes.Name) else []), *node.find_all(nodes.Name)]
