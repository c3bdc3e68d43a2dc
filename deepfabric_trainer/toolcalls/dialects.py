"""How a chat template writes assistant turns with calls: learned from the template, and proved on probes.

The template itself is asked, by rendering probes; nobody goes by a model's name.
"""

from dataclasses import dataclass, replace
from typing import Any

from deepfabric_trainer.errors import TemplateError
from deepfabric_trainer.toolcalls import probes
from deepfabric_trainer.toolcalls.argument_types import Schemas, schemas_of
from deepfabric_trainer.toolcalls.call_learning import call_candidates
from deepfabric_trainer.toolcalls.notation import CallNotation
from deepfabric_trainer.toolcalls.probes import Prober, prober_of
from deepfabric_trainer.toolcalls.turn_learning import learn_turn
from deepfabric_trainer.toolcalls.turns import TurnForm

_known_dialects: dict[str, "TurnDialect"] = {}
_known_forms: dict[str, TurnForm] = {}


@dataclass(frozen=True)
class TurnDialect:
    """How a template writes turns.

    Args:
        form (`TurnForm`): Reasoning, frames and ends.
        calls (`CallNotation`): The calls.
    """

    form: TurnForm
    calls: CallNotation


def find_dialect(processing_class: Any) -> TurnDialect:
    """Ask the chat template of a tokenizer or processor how it writes calls.

    Raises:
        TemplateError: If there is no template, or it drops calls, or writes them in a way that cannot be learned.
    """
    template = repr(getattr(processing_class, "chat_template", None))
    if template not in _known_dialects:
        prober = prober_of(processing_class)
        form = _form(template, prober)
        _known_dialects[template] = TurnDialect(form, _find_notation(prober, form))
    return _known_dialects[template]


def find_form(processing_class: Any) -> TurnForm:
    """Ask the chat template how it writes turns; what it does not show is as in most templates."""
    template = repr(getattr(processing_class, "chat_template", None))
    if template not in _known_forms:
        try:
            _form(template, prober_of(processing_class))
        except TemplateError:
            return TurnForm()
    return _known_forms[template]


def _form(template: str, prober: Prober) -> TurnForm:
    if template not in _known_forms:
        _known_forms[template] = learn_turn(prober)
    return _known_forms[template]


def _find_notation(prober: Prober, form: TurnForm) -> CallNotation:
    shown = form.body(prober.turn(probes.plain_call()) or "")
    if probes.FIRST not in shown:
        # The names of some models' calls stand in the calls' ids alone.
        prober = replace(prober, named_ids=True)
        shown = form.body(prober.turn(probes.plain_call()) or "")
    if not all(text in shown for text in (probes.FIRST, probes.VALUES[0])):
        raise TemplateError(
            "the chat template drops tool calls",
            expected="a template that renders the name and the arguments of `tool_calls`",
            fix="set `processing_class.chat_template` to one that does",
        )
    written = [(calls, prober.turn(*calls)) for calls in probes.CHECKS]
    checks = [(calls, form.body(text)) for calls, text in written if text is not None]
    best, most = None, 0
    for notation in call_candidates(prober, form):
        right = [_reads(notation, text, calls) for calls, text in checks]
        if right[0] and sum(right) > most:
            best, most = notation, sum(right)
        if most == len(checks):
            break
    if best is None:
        raise TemplateError(
            f"the chat template writes tool calls in a way that could not be learned: {shown[:160]!r}",
            expected="calls as JSON, between tags like XML, as Python calls, or as keys with values",
            fix="use a tokenizer with such a template, or read the calls yourself and use `score_tool_calls`",
        )
    return best


_SCHEMAS: Schemas = schemas_of(probes.TOOLS)


def _reads(notation: CallNotation, text: str, calls: tuple[tuple[str, dict[str, Any]], ...]) -> bool:
    found = list(notation.find(text, _SCHEMAS))
    read = [(call.function["name"], call.function["arguments"]) for call in found if call.function is not None]
    return read == list(calls) and all(call.error is None for call in found)
