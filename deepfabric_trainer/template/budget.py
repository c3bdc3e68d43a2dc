"""What one rendering may cost: steps, characters and seconds, counted while it goes on.

Chat templates come with models, from strangers. The sandbox keeps them from files and processes, but not from loops
and texts without end, and no thread can be stopped from outside. So what a template does is counted where it does
it, and it ends itself.
"""

from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from threading import get_ident
from time import perf_counter, thread_time
from typing import Any

import jinja2
from jinja2.runtime import Macro

STEPS = 10_000_000
"""Of any rendering; real templates take some thousands for a conversation."""
STEPS_OF_A_CHARACTER, STEPS_OF_A_VALUE = 100, 2_000
"""More of them for each character, and each value, of what is rendered."""
STEPS_OF_A_PAIR, SECONDS_OF_A_PAIR, MOST_PAIRS = 300, 30e-6, 10_000_000
"""More of them for each pair of messages: templates look for the call of a result in all messages before it."""
SECONDS = 5.0
"""Of processor time for any rendering, and one more for each million characters."""
LONGEST = 8_000_000
"""Characters, or values, of anything that a template makes; 64 times the input where that is more."""
MOST_BITS = 20_000
"""Of a number: what Python would write down, and not more."""
_SLICE = 4096
"""Steps between two looks at the clock."""
_ITEM, _ENTRY = 8, 24
"""What a place in a list, and an entry of an object, count, in characters."""
_FREE = 256
"""Characters of a text that cost nothing but the step that made it."""


class OverBudgetError(jinja2.TemplateError):
    """A rendering that would cost more than any conversation is worth; the message names the bound."""


class Budget:
    """What one rendering may still cost. Not for two renderings at a time."""

    def __init__(self) -> None:
        self.start({})

    def start(self, given: Mapping[str, Any]) -> None:
        """Begin anew.

        Args:
            given (`Mapping[str, Any]`): What is rendered; it is measured when a rendering costs much, and not before.
        """
        self._given = given
        self._allowance: tuple[int, float, int] | None = None
        self._left = _SLICE
        self._spent = 0
        self._begin = self._begin_time = 0.0
        self._thread = 0
        self._weights: dict[int, tuple[Any, int]] = {}

    def spend(self, steps: int) -> None:
        """Count steps.

        Raises:
            OverBudgetError: If these are more than there were left.
        """
        self._left -= steps
        if self._left < 0:
            self._look()

    def made(self, value: Any) -> Any:
        """Count a value that a template has put together, with all that it holds, and return it."""
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) > _FREE:
                self.made_text(len(value))
        elif kind is list or kind is tuple or kind is dict:
            self.made_text(self.weight(value))
        return value

    def took(self, value: Any) -> Any:
        """Count a value whose parts were there before, such as a slice or what a filter gives, and return it."""
        kind = type(value)
        if kind is str:
            if len(value) > _FREE:
                self.made_text(len(value))
        elif kind is list or kind is tuple:
            self.made_text(_ITEM * len(value))
        elif isinstance(value, dict | str | bytes):
            self.made_text(self.weight(value))
        elif kind is int and value.bit_length() > MOST_BITS:
            raise OverBudgetError("it makes a number of too many digits")
        return value

    def added(self, left: Any, right: Any) -> Any:
        """Return a sum, and count it."""
        total = left + right
        kind = type(total)
        if kind is str:
            if len(total) > _FREE:
                self.made_text(len(total))
        elif kind is list or kind is tuple:
            weight = self.weight(left) + self.weight(right)
            self.made_text(weight)
            self._weights[id(total)] = total, weight
        elif isinstance(total, str | bytes):
            self.made_text(len(total))
        return total

    def made_text(self, length: int) -> None:
        """Count so many characters.

        Raises:
            OverBudgetError: If it is too long for a text, or all texts are.
        """
        if length > LONGEST:
            longest = self._measured()[2]
            if length > longest:
                raise OverBudgetError(f"it makes something of {length:,} characters, and may make {longest:,}")
        self.spend(length >> 2)

    def weight(self, value: Any) -> int:
        """Return how many characters and values a value holds, those that it holds twice counted twice."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return 1 + (value.bit_length() >> 3)
        if isinstance(value, Macro):
            return _ITEM + len(value.name)
        if not isinstance(value, dict | list | tuple | KeysView | ValuesView | ItemsView):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            # The value is kept, so that its id is not given to another one.
            known = self._weights[id(value)] = value, self._weight_of_parts(value)
        return known[1]

    def _weight_of_parts(self, value: Any) -> int:
        if isinstance(value, list | tuple | KeysView | ValuesView):
            return _ITEM + len(value) + sum(map(self.weight, value))
        entries = value.items() if isinstance(value, dict) else value
        return _ITEM + sum(_ENTRY + self.weight(key) + self.weight(item) for key, item in entries)

    def _look(self) -> None:
        """Take the next slice, if neither steps nor time are used up."""
        self._spent += _SLICE - self._left
        self._left = _SLICE
        taken = self._seconds()
        if self._spent <= STEPS and taken <= SECONDS:
            return
        steps, seconds, _ = self._measured()
        if self._spent > steps:
            raise OverBudgetError(f"it has not come to its end after {steps:,} steps")
        if taken > seconds:
            raise OverBudgetError(f"it has not come to its end after {seconds:.0f} seconds")

    def _seconds(self) -> float:
        """Return the processor time of what has become slow; a machine that sleeps or is busy takes none."""
        now = perf_counter()
        self._begin = self._begin or now
        if now - self._begin < 1:
            return 0.0
        time, thread = thread_time(), get_ident()
        if thread != self._thread:  # each thread has a clock of its own
            self._thread, self._begin_time = thread, time
        return time - self._begin_time

    def _measured(self) -> tuple[int, float, int]:
        """Return the steps, seconds and characters that what is rendered is worth."""
        if self._allowance is None:
            values, characters = _size(self._given)
            messages = self._given.get("messages")
            pairs = min(len(messages) ** 2, MOST_PAIRS) if isinstance(messages, list | tuple) else 0
            self._allowance = (
                STEPS + STEPS_OF_A_CHARACTER * characters + STEPS_OF_A_VALUE * values + STEPS_OF_A_PAIR * pairs,
                SECONDS + characters / 1e6 + SECONDS_OF_A_PAIR * pairs,
                max(LONGEST, 64 * characters),
            )
        return self._allowance


def _size(given: Any) -> tuple[int, int]:
    """Return how many values there are in something, and how many characters."""
    values = characters = 0
    rest = [given]
    while rest:
        value = rest.pop()
        values += 1
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            rest += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            rest += value
    return values, characters
