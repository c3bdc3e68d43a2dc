"""The Python code of a template, with counts in it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame, optimizeconst

_STRETCH, _HEAVIEST = 192, 4096
"""Weight of the statements between two counts, and of a statement that is counted as a whole."""
COMPARES, _WRITES = 16, 8
"""Weight of what may look through long texts, and of a piece that is kept until the end."""
_COMPARING = nodes.Compare, nodes.Test, nodes.Getitem, nodes.Call, nodes.Filter
"""Expressions that may look through long texts."""
SHORT = 1_000
"""Characters of a constant whose addition is not worth a look."""


class CountingCode(CodeGenerator):
    """Writes the Python code of a template with counts in it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counted: set[int] = set()
        self._counts_itself: set[int] = set()
        self._weights: dict[int, int] = {}

    def visit(self, node: nodes.Node, *args: Any, **options: Any) -> Any:
        """Write a node, with a count in front of it if it has to count itself."""
        counts = id(node) in self._counts_itself
        self.write(f"(spend({COMPARES}) or " if counts else "")
        super().visit(node, *args, **options)
        self.write(")" if counts else "")

    def write_commons(self) -> None:
        """Write what every function of the code begins with."""
        super().write_commons()
        self.writeline("spend, text = environment.budget.spend, environment.text")
        self.writeline(
            "made, took, added = environment.budget.made, environment.budget.took, environment.budget.added"
        )

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        """Count the turns of a loop, and those that its condition leaves out."""
        self._counted.add(id(node.body))
        if node.test is not None:
            self._counts_itself.add(id(node.test))
        super().visit_For(node, frame)

    def macro_body(self, node: Any, frame: Frame) -> Any:
        """Count the calls of a macro."""
        self._counted.add(id(node.body))
        return super().macro_body(node, frame)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Write statements, with a count before the body of a loop or macro and before each stretch of many."""
        statements = list(nodes)
        weights = [self._weight(statement) for statement in statements]
        for statement in statements:
            self._count_inside(statement)
        if sum(weights) < _STRETCH and id(nodes) not in self._counted:
            super().blockvisit(statements, frame)
            return
        begin, weight = 0, 2
        for end, more in enumerate(weights, start=1):
            weight += more
            if weight >= _STRETCH or end == len(weights):
                self.writeline(f"spend({weight})")
                super().blockvisit(statements[begin:end], frame)
                begin, weight = end, 0
        if not statements:
            self.writeline("spend(2)")

    def _weight(self, node: nodes.Node) -> int:
        """Return the weight of a node, without that of the bodies of loops and macros, which count themselves."""
        known = self._weights.get(id(node))
        if known is None:
            known = self._weights[id(node)] = _own_weight(node) + sum(map(self._weight, _parts(node)))
        return known

    def _count_inside(self, statement: nodes.Node) -> None:
        """Let the parts of a statement count themselves if there are so many that the clock would wait for them."""
        inside = list(_expressions(statement))
        if COMPARES * len(inside) > _HEAVIEST:
            self._counts_itself.update(map(id, inside))

    @optimizeconst
    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        """Count a sum, but for that of a text and a short constant."""
        is_small = any(isinstance(side, nodes.Const) and _is_short(side.value) for side in (node.left, node.right))
        self.write("(" if is_small else "added(")
        self.visit(node.left, frame)
        self.write(" + " if is_small else ", ")
        self.visit(node.right, frame)
        self.write(")")

    @optimizeconst
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Count what is joined."""
        self.write("environment.joined(")
        if frame.eval_ctx.volatile:
            self.write("(markup_join if context.eval_ctx.volatile else str_join)")
        else:
            self.write("markup_join" if frame.eval_ctx.autoescape else "str_join")
        self.write(", (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    @optimizeconst
    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        """Count a slice; what is read at one place was there before."""
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("took(" if is_slice else "environment.item(")
        self.visit(node.node, frame)
        self.write("[" if is_slice else ", ")
        self.visit(node.arg, frame)
        self.write("])" if is_slice else ")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        """Count what a list holds."""
        self._literal(super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        """Count what a tuple holds; the targets of assignments are tuples, too."""
        if node.ctx == "load":
            self._literal(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        """Count what an object holds."""
        self._literal(super().visit_Dict, node, frame)

    def _literal(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        is_const = all(isinstance(child, nodes.Const | nodes.Pair) for child in node.iter_child_nodes())
        is_const = is_const and all(isinstance(pair.value, nodes.Const) for pair in node.find_all(nodes.Pair))
        self.write("" if is_const else "made(")
        visit(node, frame)
        self.write("" if is_const else ")")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        # A text is as it is; what becomes one is counted.
        self.write("(value if type(value := ")
        if frame.eval_ctx.volatile:
            self.write("(escape if context.eval_ctx.autoescape else text)(")
        else:
            self.write("escape(" if frame.eval_ctx.autoescape else "(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")) is str else text(value))")


def _own_weight(node: nodes.Node) -> int:
    if isinstance(node, nodes.Output):
        return _WRITES * len(node.nodes)
    is_place = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const)
    return COMPARES if isinstance(node, _COMPARING) and not is_place else 1


def _parts(node: nodes.Node) -> Iterable[nodes.Node]:
    """Return the parts of a node that are run where it stands, once."""
    if isinstance(node, nodes.TemplateData | nodes.Macro):
        return ()
    if isinstance(node, nodes.For):
        return (node.iter,)
    if isinstance(node, nodes.CallBlock):
        return (node.call,)
    return node.iter_child_nodes()


def _expressions(node: nodes.Node) -> Iterator[nodes.Node]:
    """Go over what may look through long texts in a statement, not in those inside."""
    for child in node.iter_child_nodes():
        if not isinstance(child, nodes.Stmt):
            if isinstance(child, _COMPARING):
                yield child
            yield from _expressions(child)


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and len(value) <= SHORT)
