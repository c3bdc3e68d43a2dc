import logging
import os
import pickle
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from trl import SFTConfig

from deepfabric_trainer.callbacks import TrainingProgressCallback, _progress_display
from tests.fixtures.run_records import measured
from tests.fixtures.tiny import QUIET

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROOT = Path(__file__).parents[2]


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes both streams one terminal; inside the test, since pytest sets them anew before it."""

    def replace() -> Terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return replace


@pytest.fixture
def run(tmp_path):
    class Run:
        def __init__(self, **args: Any) -> None:
            self.callback = TrainingProgressCallback()
            self.args = SFTConfig(**({**QUIET, "output_dir": str(tmp_path), "disable_tqdm": False} | args))
            self.state = TrainerState(max_steps=10, is_world_process_zero=True)

        def tell(self, event: str, **kwargs: Any) -> None:
            getattr(self.callback, f"on_{event}")(self.args, self.state, TrainerControl(), **kwargs)

        def step(self, **logs: float) -> None:
            self.tell("step_begin")
            self.state.global_step += 1
            self.tell("step_end")
            if logs:
                self.tell("log", logs=logs)

    return Run


def shown(stream: StringIO) -> str:
    return CONTROL.sub("", stream.getvalue())


def test_the_bar(open_terminal, run):
    terminal = open_terminal()
    subject = run()
    subject.tell("train_begin")
    subject.step(loss=2.5, num_tokens=100)
    subject.step(loss=1.25, num_tokens=200)
    subject.tell("evaluate", metrics=measured(2, 0.75))
    subject.tell("train_end")
    text = shown(terminal)
    assert "2/10" in text
    assert re.search(r"loss 1\.250  tok/s [\d.k]+  exact 0\.75  \d+ s left", text)


def test_an_evaluation_has_a_bar_while_it_lasts(open_terminal, run):
    terminal = open_terminal()
    subject = run()
    subject.tell("train_begin")
    for _ in range(4):
        subject.tell("prediction_step", eval_dataloader=[0] * 4)
    assert "4/4" in shown(terminal)
    terminal.truncate(0)
    subject.tell("evaluate", metrics={})
    subject.step(loss=1.0)
    assert "evaluation" not in shown(terminal).splitlines()[-1]
    subject.tell("train_end")


@pytest.mark.parametrize("event", ["evaluate", "predict"])
def test_an_evaluation_outside_of_training_has_a_bar(open_terminal, run, event):
    terminal = open_terminal()
    subject = run()
    subject.tell("train_begin")
    subject.tell("train_end")
    for _ in range(2):
        terminal.truncate(0)
        for _ in range(4):
            subject.tell("prediction_step", eval_dataloader=[0] * 4)
        assert sys.stderr is not terminal
        subject.tell(event, metrics={})
        assert sys.stderr is terminal
        assert re.search(r"evaluation .*4/4", shown(terminal))
        assert "training" not in shown(terminal)


def test_an_evaluation_outside_of_training_has_none_where_none_is_wanted(open_terminal, run):
    terminal = open_terminal()
    subject = run(disable_tqdm=True)
    subject.tell("prediction_step", eval_dataloader=[0] * 4)
    subject.tell("evaluate", metrics={})
    assert shown(terminal) == ""


def test_lines_stand_whole_above_the_bar(open_terminal, run):
    terminal = open_terminal()
    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("test_progress")
    log.addHandler(handler)
    try:
        subject = run()
        subject.tell("train_begin")
        log.warning("a logged line")
        print("a printed [bold]line[/bold]")
        subject.tell("train_end")
        assert handler.stream is terminal
    finally:
        log.removeHandler(handler)
    lines = [line.strip() for line in shown(terminal).replace("\r", "\n").splitlines()]
    assert "a logged line" in lines
    assert "a printed [bold]line[/bold]" in lines


@pytest.mark.parametrize("ending", ["end", "close", "gone"])
def test_the_terminal_is_given_back(open_terminal, run, ending):
    terminal = open_terminal()
    subject = run()
    subject.tell("train_begin")
    assert sys.stdout is not terminal
    if ending == "end":
        subject.tell("train_end")
    elif ending == "close":
        subject.callback.close()
        subject.callback.close()
    else:
        subject.state = None
    assert sys.stdout is sys.stderr is terminal
    assert terminal.getvalue().rfind("\x1b[?25h") > terminal.getvalue().rfind("\x1b[?25l")


def test_plain_lines_without_a_terminal(run, capsys):
    subject = run()
    subject.tell("train_begin")
    subject.step(loss=2.5, learning_rate=1e-4, grad_norm=3.0)
    subject.tell("log", logs={"eval_loss": 1.5, **measured(1, 0.5)})
    subject.tell("log", logs={"other": 1.0})
    subject.tell("train_end")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1/10  loss 2\.5  lr 0\.0001  \d+ s left", lines[0])
    assert lines[1:] == ["step 1/10  eval loss 1.5  exact match 0.50 (0.38–0.62)", "step 1/10  other 1"]


def test_no_bar_where_it_is_not_wanted(open_terminal, run):
    terminal = open_terminal()
    subject = run(disable_tqdm=True)
    subject.tell("train_begin")
    subject.step(loss=2.5)
    subject.tell("train_end")
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().startswith("step 1/10  loss 2.5")


@pytest.mark.parametrize("gone", [OSError(5, "Input/output error"), ValueError("I/O operation on closed file")])
def test_a_terminal_that_is_gone_does_not_end_the_run(open_terminal, run, caplog, gone):
    def fail(text: str) -> int:
        raise gone

    terminal = open_terminal()
    subject = run()
    subject.tell("train_begin")
    terminal.write = fail
    for _ in range(2):
        subject.callback._drawn = 0.0
        subject.step(loss=2.5)
    subject.tell("evaluate", metrics={"eval_loss": 1.0})
    subject.tell("train_end")
    assert sys.stdout is sys.stderr is terminal
    assert caplog.text.count("the run goes on without a bar") == 1


def test_streams_that_know_nothing_of_terminals(monkeypatch):
    class Writer:
        def write(self, text: str) -> None:
            pass

    closed = StringIO()
    closed.close()
    for stream in (Writer(), closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        assert _progress_display.terminal() is None


def test_a_terminal_that_cannot_move_its_cursor_is_none(open_terminal, monkeypatch):
    terminal = open_terminal()
    assert _progress_display.terminal() is terminal
    monkeypatch.setenv("TERM", "dumb")
    assert _progress_display.terminal() is None


def test_other_processes_are_silent(run, capsys):
    subject = run()
    subject.state.is_world_process_zero = False
    subject.tell("train_begin")
    subject.step(loss=2.5)
    subject.tell("train_end")
    assert capsys.readouterr() == ("", "")


def test_output_that_goes_to_a_file_stays_there(open_terminal, run, monkeypatch):
    open_terminal()
    file = StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    subject = run()
    subject.tell("train_begin")
    print("for the file")
    subject.tell("train_end")
    assert file.getvalue() == "for the file\n"


def test_picklable_in_a_run(open_terminal, run):
    open_terminal()
    subject = run()
    subject.tell("train_begin")
    copy = pickle.loads(pickle.dumps(subject.callback))
    copy.on_train_end(None, subject.state, None)
    assert copy._display is None
    assert subject.callback._display is not None, "the terminal stays with the run"
    subject.tell("train_end")
    assert subject.callback._display is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_an_exception_leaves_a_terminal_as_it_was(tmp_path):
    """In a real terminal: the traceback can be read, and the cursor is visible in the end."""
    import pty

    code = f"""
from transformers import TrainerControl, TrainerState
from trl import SFTConfig
from deepfabric_trainer.callbacks import TrainingProgressCallback, _progress_display
from tests.fixtures.tiny import QUIET
args = SFTConfig(**{{**QUIET, "output_dir": {str(tmp_path)!r}, "disable_tqdm": False}})
state = TrainerState(max_steps=10, is_world_process_zero=True)
TrainingProgressCallback().on_train_begin(args, state, TrainerControl())
raise RuntimeError("out of memory")
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # the terminal is closed
        pass
    finally:
        os.close(ours)
    assert process.wait() == 1
    text = written.decode()
    assert "RuntimeError: out of memory" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
