"""Work that forked processes inherit: pickling a tokenizer for each can take longer than what it does there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import multiprocess

_INHERITED: dict[int, Callable[..., Any]] = {}
_NUMBERS = count()


class _Inherited:
    """Stands for a function that this process, or the one that it was forked from, has in memory."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, *args: Any) -> Any:
        return _INHERITED[self._number](*args)


@contextmanager
def inherited(function: Callable[..., Any], processes: int | None) -> Iterator[Callable[..., Any]]:
    """Yield what does the same, and is small when it is pickled for processes that are forked inside the block.

    Args:
        function (`Callable`): What is done.
        processes (`int`, *optional*): How many `Dataset.map` is going to start; `None` and 1: none.

    Yields:
        `Callable`: The function itself, where no process is started or they are not forked.
    """
    if (processes or 1) == 1 or multiprocess.get_start_method() != "fork":
        yield function
        return
    number = next(_NUMBERS)
    _INHERITED[number] = function
    try:
        yield _Inherited(number)
    finally:
        del _INHERITED[number]
