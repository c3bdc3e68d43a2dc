import os
import pickle
from typing import Any

import multiprocess
import pytest
from datasets import Dataset

from deepfabric_trainer.prepare.forked import inherited


class Large:
    """Tells in which process it runs; cannot be pickled."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"] + 1, "process": os.getpid()}

    def __reduce__(self) -> Any:
        raise TypeError("too large to be pickled")


def test_forked_processes_have_what_was_never_pickled() -> None:
    dataset = Dataset.from_dict({"number": range(8)})
    with inherited(Large(), 2) as function:
        assert len(pickle.dumps(function)) < 200
        mapped = dataset.map(function, num_proc=2, new_fingerprint="forked")
    assert mapped["number"] == list(range(1, 9))
    assert len(set(mapped["process"])) == 2
    assert os.getpid() not in mapped["process"]
    with pytest.raises(KeyError):
        function({"number": 1})


@pytest.mark.parametrize("processes", [None, 0, 1])
def test_in_this_process_it_is_the_function_itself(processes: int | None) -> None:
    with inherited(len, processes) as function:
        assert function is len


def test_processes_that_are_not_forked_get_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocess, "get_start_method", lambda: "spawn")
    with inherited(len, 2) as function:
        assert function is len
