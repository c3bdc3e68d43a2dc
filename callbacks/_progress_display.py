"""A bar in a terminal that leaves it as it was."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from deepfabric_trainer.visible import visible


def terminal() -> Any | None:
    """Return the stream that is a terminal, standard error before standard output; `None`: neither is."""
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):  # nothing can be drawn there
        return None
    return next(filter(_is_terminal, (sys.stderr, sys.stdout)), None)


class ProgressDisplay:
    """A bar for the training, a line for the figures, and a bar for what goes on in between.

    No thread draws it and the cursor stays visible, so that a run which ends without a word leaves nothing to mend.
    What is printed and logged meanwhile stands whole above it.

    Args:
        stream (`TextIO`): A terminal.
        total (`int`, *optional*): Training steps, or batches of an evaluation alone.
        done (`int`): Of them done before.
        what (`str`): What goes on.
    """

    def __init__(self, stream: Any, total: int | None, done: int, what: str = "training") -> None:
        console = _Console(file=stream)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            auto_refresh=False,
            expand=True,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=_is_terminal(sys.stderr),
        )
        self._training = self._progress.add_task(what, total=total, completed=done, figures="")
        self._inner: TaskID | None = None
        streams = sys.stdout, sys.stderr
        self._progress.start()
        console.show_cursor(True)
        self._moved = list(_move_log_handlers(streams, (sys.stdout, sys.stderr)))

    def advance(self, done: int, figures: str) -> None:
        """Show so many steps, and figures behind the bar."""
        self._progress.update(self._training, completed=done, figures=figures, refresh=True)

    def show_inner(self, what: str, done: int, total: int | None) -> None:
        """Show a second bar."""
        if self._inner is None:
            self._inner = self._progress.add_task(what, total=total, figures="")
        self._progress.update(self._inner, completed=done, total=total, refresh=True)

    def hide_inner(self) -> None:
        """Take the second bar away."""
        if self._inner is not None:
            self._progress.remove_task(self._inner)
            self._progress.refresh()
        self._inner = None

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(visible(text), markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is, and give the streams back."""
        for handler, ours, stream in self._moved:
            if handler.stream is ours:
                handler.setStream(stream)
        self._moved = []
        try:
            self.hide_inner()
        finally:
            self._progress.stop()


class _Console(Console):
    """One that does not end the program when nobody reads any more; whoever draws goes on without a bar."""

    def on_broken_pipe(self) -> None:
        """Pass the error on, where the parent exits."""
        raise


def _is_terminal(stream: Any) -> bool:
    """Tell whether a stream is one; what stands in for a stream may not know, and a closed one raises."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


_Moved = tuple[logging.StreamHandler[Any], Any, Any]


def _move_log_handlers(before: tuple[Any, Any], after: tuple[Any, Any]) -> Iterator[_Moved]:
    """Let the handlers that hold a stream from before write above the bar; yield them with what they have and had."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    handlers = {handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers}
    for handler in handlers:
        if not isinstance(handler, logging.StreamHandler):
            continue
        for old, new in zip(before, after, strict=True):
            if handler.stream is old and new is not old:
                handler.setStream(new)
                yield handler, new, old
