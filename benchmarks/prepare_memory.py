"""How much memory preparation takes at its peak, measured in a process of its own."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value

from benchmarks.catalogue import as_text, make_rows, make_tools

_BLOCK = 1000
_PERIOD = 0.05


@dataclass(frozen=True)
class Memory:
    """What preparing so many rows took.

    Args:
        rows (`int`): Rows, of about 4,000 tokens each.
        before_mib (`float`): Resident memory before, with everything imported.
        peak_mib (`float`): Resident memory at its peak, with the pages of files that are mapped.
        peak_own_mib (`float`): The same without these pages, which the system takes back when it needs them.
        seconds (`float`): Of the clock.
        prepared_mib (`float`): What was written.
    """

    rows: int
    before_mib: float
    peak_mib: float
    peak_own_mib: float
    seconds: float
    prepared_mib: float


def measure_memory(rows: int, tools: int = 20, catalogue: int = 200, num_proc: int | None = None) -> Memory:
    """Prepare rows from a file in a process of its own, and return what it took. Linux only."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.prepare_memory",
        str(rows),
        str(tools),
        str(catalogue),
        str(num_proc or 0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.run([*command, folder], check=True, capture_output=True, text=True).stdout
    return Memory(**json.loads(output.splitlines()[-1]))


def main() -> None:
    import threading

    from benchmarks.tokenizer import small_tokenizer
    from deepfabric_trainer.encode import ConversationEncoder
    from deepfabric_trainer.prepare import prepare_dataset

    parser = argparse.ArgumentParser()
    for name in ("rows", "tools", "catalogue", "num_proc"):
        parser.add_argument(name, type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()

    features = Features({"messages": List(Json()), "tools": Value("string")})
    rows = Dataset.from_generator(
        _rows,
        features=features,
        gen_kwargs={"count": options.rows, "tools": options.tools, "catalogue": options.catalogue},
        cache_dir=str(options.folder),
    )
    encoder = ConversationEncoder(small_tokenizer(template="qwen2_5"))
    before = _resident()[0]
    peaks = [0.0, 0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_PERIOD):
            peaks[:] = map(max, peaks, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    prepared = prepare_dataset(rows, encoder, num_proc=options.num_proc or None)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    written = sum(Path(file["filename"]).stat().st_size for file in prepared.cache_files)
    figures = {
        "rows": options.rows,
        "before_mib": round(before, 1),
        "peak_mib": round(peaks[0], 1),
        "peak_own_mib": round(peaks[1], 1),
        "seconds": round(seconds, 1),
        "prepared_mib": round(written / 2**20, 1),
    }
    print(json.dumps(figures))


def _rows(count: int, tools: int, catalogue: int) -> Iterator[dict[str, Any]]:
    made = make_tools(catalogue)
    for block in range(0, count, _BLOCK):
        yield from as_text(
            make_rows(min(_BLOCK, count - block), catalogue=made, tools_per_row=tools, seed=block // _BLOCK)
        )


def _resident() -> tuple[float, float]:
    """Return the resident memory of this process in MiB: all, and without the pages of files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssFile")}
    return kib["VmRSS"] / 1024, (kib["VmRSS"] - kib["RssFile"]) / 1024


if __name__ == "__main__":
    main()
