from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import TensorBoardCallback

from deepfabric_trainer.callbacks import MetricsLoggerCallback
from deepfabric_trainer.callbacks._sinks.tensorboard import TensorBoardSink
from tests.fixtures.journal_entries import Measures, measurement, sample

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def texts(events: Any, name: str) -> list[tuple[int, str]]:
    found = events.Tensors(f"{name}/text_summary")
    return [(entry.step, entry.tensor_proto.string_val[0].decode()) for entry in found]


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [False, True])
def test_shows_measurements_in_the_folder_of_transformers(
    make_sft_trainer: Any, tool_rows: Any, tmp_path: Path, ours_first: bool
) -> None:
    callbacks = [Measures(), MetricsLoggerCallback(samples_per_log=2)]
    trainer = make_sft_trainer(tool_rows, callbacks=callbacks, max_steps=3, report_to=["tensorboard"])
    if ours_first:
        trainer.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, TensorBoardCallback))
    trainer.train()
    (folder,) = (tmp_path / "run" / "runs").iterdir()
    events = read(folder)
    scalars = [(entry.step, round(entry.value, 6)) for entry in events.Scalars("eval/tool_call_exact_match")]
    assert scalars == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [entry.step for entry in events.Scalars("train/loss")] == [1, 2, 3]
    assert [step for step, _ in texts(events, "samples/1")] == [1, 2, 3]
    assert "samples/2/text_summary" not in events.Tags()["tensors"]
    assert "    user: Weather in Köln?" in texts(events, "samples/0")[0][1]
    assert texts(events, "tools")[0][1].endswith("3       3      1  get_weather")
    ((step, text),) = texts(events, "events/loss_spike")
    assert step == 2
    assert "    The loss is `NaN` <b>here</b>." in text.splitlines()


def test_what_a_model_writes_is_code_and_never_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "given"))
    sink = TensorBoardSink(tmp_path, samples_per_log=1)
    result = measurement(1)
    result.samples[0] = sample(predicted_text="# Title\n<script>x</script>\r\n\x0b\n```\n[a](b)")
    sink.measurement(result)
    sink.close()
    ((_, text),) = texts(read(tmp_path / "given"), "samples/0")
    names = ("step", "row", "prompt", "expected", "generated", "exact_match", "error")
    markup = [line for line in text.splitlines() if line and not line.startswith("    ")]
    assert markup == [f"**{name}**" for name in names]
