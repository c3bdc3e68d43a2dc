"""Learning from probes what a template writes in a turn beside calls, and what ends it."""

from deepfabric_trainer.schema import Message
from deepfabric_trainer.template.habits import TAG
from deepfabric_trainer.toolcalls import probes
from deepfabric_trainer.toolcalls.pieces import common_start
from deepfabric_trainer.toolcalls.probes import Prober
from deepfabric_trainer.toolcalls.turns import KNOWN_STOPS, TurnForm


def learn_turn(prober: Prober) -> TurnForm:
    """Learn what a turn is made of beside calls."""
    asked = prober.asked()
    answer = prober.turn(content=probes.ANSWER) or ""
    thinking = _first_with(
        probes.THOUGHT,
        prober.turn(content=probes.ANSWER, reasoning=probes.THOUGHT),
        prober.turn(probes.plain_call(), reasoning=probes.THOUGHT),
        prober.turn(probes.plain_call(), content=probes.ANSWER, reasoning=probes.THOUGHT),
    )
    opening, closing = "<think>", "</think>"
    before, _, rest = thinking.partition(probes.THOUGHT)
    closed = TAG.search(rest)
    if thinking and closed is not None:
        closing = closed[0]
        opening = before.strip() or next((tag for tag in TAG.findall(asked)[::-1] if tag != closing), opening)
    opens = asked.rfind(opening) > asked.rfind(closing)
    form = TurnForm(opening, closing, opens)
    framing = answer.partition(probes.ANSWER)[0]
    _, framing = form.leading_reasoning(framing)
    framing = framing.partition(closing)[2] if opens and closing in framing else framing
    tags = TAG.findall(framing)
    header_end = tags[-1] if tags and framing.strip().endswith(tags[-1]) else ""
    between = rest.partition(closing)[2].partition(probes.ANSWER)
    message_start = between[0].removesuffix(framing).strip() if header_end and between[1] else ""
    own_stops, stops = _stops(prober, answer, rest)
    return TurnForm(opening, closing, opens, message_start, header_end, own_stops, stops)


def _stops(prober: Prober, answer: str, thinking: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts with which the template ends a turn, and those with which any does."""
    behind_answer = answer.partition(probes.ANSWER)[2]
    next_question = [Message(role="user", content=probes.QUESTION)]
    followed = prober.turn(content=probes.ANSWER, following=next_question) or ""
    stops = _first_tag(behind_answer) or _first_tag(followed.partition(probes.ANSWER)[2])
    calls = [probes.plain_call()]
    one, two = prober.turn(*calls) or "", prober.turn(*calls, probes.plain_call(probes.SECOND)) or ""
    two = two if probes.SECOND in two else ""  # some templates leave out all calls but the first
    tail = one.rpartition(probes.VALUES[1])[2]
    if not any(stop in tail for stop in stops):
        between = two.partition(probes.VALUES[1])[2].partition(probes.SECOND)[0]
        closing = common_start(between, tail)
        stops += tuple(TAG.findall(tail.removeprefix(closing))[-1:])
        if not TAG.search(tail.removeprefix(closing)) and two:
            text = prober.turn(*calls, following=prober.result_of(calls)) or ""
            stops += _first_tag(text.rpartition(probes.VALUES[1])[2].removeprefix(tail))
    inside = thinking.partition(probes.ANSWER)[0] if probes.ANSWER in thinking else ""
    inside += two.partition(probes.SECOND)[0]
    own, known = ([stop for stop in some if stop not in inside] for some in (stops, KNOWN_STOPS))
    return tuple(dict.fromkeys(own)), tuple(dict.fromkeys((*own, *known)))


def _first_with(text: str, *rendered: str | None) -> str:
    return next((one for one in rendered if one is not None and text in one), "")


def _first_tag(text: str) -> tuple[str, ...]:
    return tuple(TAG.findall(text)[:1])
