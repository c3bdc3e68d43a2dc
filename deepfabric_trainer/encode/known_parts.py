"""Parts of conversations by their shape: what was found, with a proof, for one conversation is fitted to the next.

Every rendering is still the template's own, and every character of it must be where the skeleton has it. What is not
rendered again are the prompts and the beginnings of the conversation, which tell where a turn begins to be trained.
The first conversations of a shape, and a sample of the others, are looked at in full all the same.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

from deepfabric_trainer.encode.parts import Part, shows_all, stands_in, texts_of
from deepfabric_trainer.encode.regions import Region
from deepfabric_trainer.encode.shape import plain_values, shape_of
from deepfabric_trainer.encode.skeleton import Place, Skeleton, learn_skeleton
from deepfabric_trainer.encode.turns import Context, TrainedTurn
from deepfabric_trainer.schema import Message, Tool
from deepfabric_trainer.template import Catalogue, ChatTemplate, Rendering, Span, watch_of

logger = logging.getLogger(__name__)

_FIRST, _EVERY = 2, 128
"""Uses of a shape in which the conversation is looked at in full: so many at first, then each of so many."""
_MOST_SHAPES, _MOST_SEEN = 512, 16384
_MOST_CHARACTERS = 8 * 2**20
"""Of what templates wrote in the renderings of all shapes."""
_MOST_MISFITS = 64
"""Misfits, less one for every fit, after which no more shapes are learned of a template."""
_CERTAIN = (Context.EXACT, Context.INVENTED_REASONING)
"""What depends on the prompts alone, not on how far a text goes on like another one by chance."""

Find = Callable[[], list[Part]]


@dataclass(frozen=True)
class _KnownTurn:
    """A turn of every conversation of a shape; `turn` is the one that it was learned from."""

    turn: TrainedTurn
    start: Place
    end: Place
    fields: tuple[tuple[Region, Place, Place], ...]

    def at(self, begins: Sequence[int]) -> TrainedTurn:
        def span(start: Place, end: Place) -> Span:
            return Span(begins[start.piece] + start.offset, begins[end.piece] + end.offset)

        fields = tuple((region, span(start, end)) for region, start, end in self.fields)
        return replace(self.turn, span=span(self.start, self.end), fields=fields)


@dataclass(frozen=True)
class _KnownPart:
    length: int
    skeleton: Skeleton
    turns: tuple[_KnownTurn, ...]


@dataclass
class _KnownShape:
    parts: tuple[_KnownPart, ...]
    uses: int = 0

    @property
    def characters(self) -> int:
        return sum(len(part.skeleton.constant) for part in self.parts)


@dataclass
class _Shapes:
    """The shapes of one template."""

    found: OrderedDict[Hashable, _KnownShape] = field(default_factory=OrderedDict)
    seen: set[int] = field(default_factory=set)
    characters: int = 0
    misfits: int = 0


class KnownParts:
    """Finds the parts of conversations whose shape is known, and learns the shapes of others.

    Args:
        template (`ChatTemplate`): Renders the conversations.
        control_texts (`Sequence[str]`): The texts of special and stop tokens.
        appends_prompts (`Callable`): Whether, with these tools, the template is known to write its prompts behind any
            conversation in the same way.
    """

    def __init__(
        self,
        template: ChatTemplate,
        control_texts: Sequence[str],
        appends_prompts: Callable[[Sequence[Tool] | None], bool],
    ) -> None:
        self._template = template
        self._appends_prompts = appends_prompts
        self._control = re.compile("|".join(map(re.escape, control_texts)) or "(?!)")
        self._shapes: dict[str, _Shapes | None] = {}

    def find(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, wanted: Sequence[int], find: Find
    ) -> list[Part]:
        """Return the parts of a conversation, as `find` does, which looks at it in full.

        Those of a known shape come without the fields of their renderings.
        """
        source = self._template.source(tools)
        shapes = self._shapes.setdefault(source, _Shapes())
        if shapes is None or (tools is not None and not isinstance(tools, Catalogue)):
            return find()
        shape = shape_of(messages, watch_of(source), self._control)
        if shape is None or (tools is not None and tools.holds_brackets):
            return find()
        keys: list[Hashable] = [(shape, *wanted, tools and tools.known)]
        if self._appends_prompts(tools):
            # Where every tool has a place of its own in a rendering, any others may stand there.
            keys.insert(0, (shape, *wanted, len(tools or ())))
        else:
            # A prompt may depend on what a rendering shows it does not: on a tool, or on a number.
            keys = [(keys[0], plain_values(messages))]
        for key in keys:
            known = shapes.found.get(key)
            if known is None:
                continue
            shapes.found.move_to_end(key)
            parts = self._fit(known, messages, tools)
            if parts is None:
                shapes.misfits += 1
                self._forget(shapes, key)
                break
            known.uses += 1
            shapes.misfits = max(0, shapes.misfits - 1)
            return parts if known.uses > _FIRST and known.uses % _EVERY else self._checked(source, parts, find())
        parts = find()
        if shapes.misfits <= _MOST_MISFITS and self._was_seen(shapes, keys[0]):
            self._learn(shapes, keys, parts, messages, tools)
        return parts

    def _fit(self, known: _KnownShape, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[Part] | None:
        parts = []
        for part in known.parts:
            text = self._template.render(messages[: part.length], tools)
            begins = part.skeleton.fit(text, messages, tools)
            if begins is None or not _shows_tools(part.skeleton, tools):
                return None
            parts.append(Part(Rendering(text), tuple(turn.at(begins) for turn in part.turns), part.length))
        return parts

    def _checked(self, source: str, parts: list[Part], found: list[Part]) -> list[Part]:
        if [(part.rendering.text, part.turns) for part in parts] != [
            (part.rendering.text, part.turns) for part in found
        ]:
            self._shapes[source] = None
            logger.warning(
                "a chat template treats conversations of one shape differently, so every prompt is rendered from now "
                "on, which takes longer"
            )
        return found

    def _learn(
        self,
        shapes: _Shapes,
        keys: Sequence[Hashable],
        parts: Sequence[Part],
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
    ) -> None:
        learned = [_learn_part(self._template, part, messages[: part.length], tools) for part in parts]
        known = _KnownShape(tuple(part for part in learned if part is not None))
        if len(known.parts) < len(parts):
            shapes.misfits += 1
            return
        key = keys[0] if all(part.skeleton.shows_tools for part in known.parts) else keys[-1]
        self._forget(shapes, key)
        shapes.found[key] = known
        shapes.characters += known.characters
        while shapes.characters > _MOST_CHARACTERS or len(shapes.found) > _MOST_SHAPES:
            self._forget(shapes, next(iter(shapes.found)))

    def _forget(self, shapes: _Shapes, key: Hashable) -> None:
        known = shapes.found.pop(key, None)
        if known is not None:
            shapes.characters -= known.characters

    def _was_seen(self, shapes: _Shapes, key: Hashable) -> bool:
        """Tell whether a conversation of this shape came before; most shapes of long ones never come again."""
        if hash(key) in shapes.seen:
            return True
        if len(shapes.seen) >= _MOST_SEEN:
            shapes.seen.clear()
        shapes.seen.add(hash(key))
        return False


def _learn_part(
    template: ChatTemplate, part: Part, messages: Sequence[Message], tools: Sequence[Tool] | None
) -> _KnownPart | None:
    text = part.rendering.text
    if any(turn.context not in _CERTAIN for turn in part.turns):
        return None
    skeleton = learn_skeleton(template, text, messages, tools)
    begins = skeleton.fit(text, messages, tools) if skeleton is not None else None
    if skeleton is None or begins is None:
        return None
    if not skeleton.shows_tools and not all(
        stands_in(one, skeleton.constant) for tool in tools or () for one, _ in texts_of(tool)
    ):
        return None
    turns = [_learn_turn(turn, skeleton, begins) for turn in part.turns]
    known = tuple(turn for turn in turns if turn is not None)
    return _KnownPart(part.length, skeleton, known) if len(known) == len(turns) else None


def _learn_turn(turn: TrainedTurn, skeleton: Skeleton, begins: Sequence[int]) -> _KnownTurn | None:
    places = [skeleton.place(position, begins) for _, span in ((None, turn.span), *turn.fields) for position in span]
    known = [place for place in places if place is not None]
    if len(known) < len(places):
        return None
    fields = tuple(
        (region, known[2 * number], known[2 * number + 1]) for number, (region, _) in enumerate(turn.fields, start=1)
    )
    return _KnownTurn(turn, known[0], known[1], fields)


def _shows_tools(skeleton: Skeleton, tools: Sequence[Tool] | None) -> bool:
    """Tell whether a rendering that the skeleton fits shows all that a model must see of the tools."""
    known = tools.known if isinstance(tools, Catalogue) else ()
    return all(shows_all(known[number], known[number].written[style]) for number, style in skeleton.written_tools())
