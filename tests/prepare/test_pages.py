import mmap
import sys
from pathlib import Path

import pytest

from deepfabric_trainer.prepare.pages import give_back_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
_SIZE = 64 * 2**20


def resident_mib(path: Path) -> float:
    """Return how much of a file's map is in this process's memory."""
    blocks = Path("/proc/self/smaps").read_text().split("VmFlags:")
    (block,) = [block for block in blocks if str(path) in block]
    (line,) = [line for line in block.splitlines() if line.startswith("Rss:")]
    return int(line.split()[1]) / 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.arrow"
    path.write_bytes(b"abcdefgh" * (_SIZE // 8))
    return path


def test_pages_of_a_file_are_given_back_and_hold_what_they_held(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = mapped[:]
        assert resident_mib(path) > 60
        give_back_pages({str(path)})
        assert resident_mib(path) < 1
        assert mapped[:] == content


def test_pages_that_may_be_written_and_other_files_are_left_alone(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:1] = b"X"
        give_back_pages({str(path)})
        assert mapped[:8] == b"Xbcdefgh"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[-1:] == b"h"
        before = resident_mib(path)
        give_back_pages({f"{path}.other"})
        assert resident_mib(path) == before > 0
