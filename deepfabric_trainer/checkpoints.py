"""Which checkpoints are whole: a list of files, written last, or else what the files themselves show."""

import json
import logging
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from deepfabric_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

FILE_LIST = "checkpoint_files.json"
"""Lists the other files of a checkpoint with their sizes; written when all of them are on the disk."""
UNFINISHED = "checkpoint-is-incomplete.txt"
"""Is in a checkpoint while it is written; transformers' just-in-time checkpoints have a file of this name, too."""

_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_RANDOM = "rng_state*.pth"
_ZIPS = (".pt", ".pth", ".bin")
_ZIP_MAGIC = b"PK\x03\x04"


def begin_checkpoint(folder: Path) -> None:
    """Mark a checkpoint as one that is being written; one of this name that was there is whole no longer."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_through(
        folder / UNFINISHED,
        f"process {os.getpid()} writes this checkpoint; while this file is here, it is not whole\n",
    )
    (folder / FILE_LIST).unlink(missing_ok=True)


def finish_checkpoint(folder: Path) -> None:
    """Mark a checkpoint as whole, after its files have reached the disk; all processes have written theirs."""
    sizes = {}
    for path in _files(folder):
        _sync(path)
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    unfinished = folder / f"{FILE_LIST}.tmp"
    _write_through(unfinished, json.dumps({"format": 1, "files": sizes}, indent=1) + "\n")
    os.replace(unfinished, folder / FILE_LIST)
    _sync(folder)
    (folder / UNFINISHED).unlink(missing_ok=True)


def delete_older(newest: Path, limit: int | None, best: str | None) -> None:
    """Delete the checkpoints beside a new one that are too many, those first that were written first.

    transformers' own function takes for the newest what has the latest time, and deletes the new one when the clock
    was set back.

    Args:
        newest (`Path`): A checkpoint, which is kept.
        limit (`int`, *optional*): How many to keep; all, if it is not above 0.
        best (`str`, *optional*): The best one, which is kept, too.
    """
    if limit is None or limit <= 0:
        return
    kept = {newest.resolve()} | ({Path(best).resolve()} if best else set())
    found = checkpoints_of(newest.parent)
    others = sorted((path for path in found if path.resolve() not in kept), key=lambda path: path.stat().st_mtime)
    for path in others[: max(len(found) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def find_defect(folder: Path) -> str | None:
    """Return why a training cannot go on from a checkpoint, a clause; `None` if it is whole.

    A checkpoint of ours is whole when each file that it lists is there in its size. One of another trainer is, when
    all its files can be opened, of those that tell their own size as far as that, and the one that transformers writes
    last is among them.

    Args:
        folder (`Path`): The checkpoint.
    """
    if (folder / UNFINISHED).exists():
        return f"its save did not come to its end (`{UNFINISHED}` is in it)"
    try:
        listed = (folder / FILE_LIST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return _defect_without_list(folder)
    try:
        sizes = dict(json.loads(listed)["files"])
    except (ValueError, KeyError, TypeError):
        return f"`{FILE_LIST}` cannot be read"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"`{name}` is missing"
        if path.stat().st_size != size:
            return f"`{name}` has {path.stat().st_size:,} bytes of {size:,}"
    return None


def checkpoints_of(run: str | Path) -> list[Path]:
    """Return the checkpoints in a run's folder, whole or not, the newest first, by their steps."""
    if not Path(run).is_dir():
        return []
    found = [path for path in Path(run).iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def newest_whole(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """Find the checkpoint to go on from.

    Args:
        run (`Path`): The output folder of a run.

    Returns:
        `tuple[Path | None, dict[Path, str]]`: The newest whole one, and those that are newer, with what they lack.
    """
    broken: dict[Path, str] = {}
    for folder in checkpoints_of(run):
        defect = find_defect(folder)
        if defect is None:
            return folder, broken
        broken[folder] = defect
    return None, broken


def last_checkpoint(run: str | Path) -> str | None:
    """Return the newest whole checkpoint in a run's folder, `None` if there is none yet.

    Args:
        run (`str` or `Path`): The output folder of a run; newer ones that are not whole are named in the log.
    """
    chosen, _ = _newest_whole_with_a_word(Path(run))
    return None if chosen is None else str(chosen)


def choose_checkpoint(wanted: Any, run: Path) -> Any:
    """Return the checkpoint that a run goes on from.

    Args:
        wanted (`str`, `Path` or `bool`, *optional*): A checkpoint, or `True` for the newest whole one.
        run (`Path`): The run's output folder.

    Returns:
        `str`: The checkpoint's folder; `None` to begin anew; what was wanted where there is nothing to choose from.

    Raises:
        ConfigError: If the checkpoint is not whole, or none is.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is not True:
        if Path(wanted).is_dir():
            _require_whole(Path(wanted))
        return str(wanted)
    chosen, broken = _newest_whole_with_a_word(run)
    if chosen is None and broken:
        defect = next(iter(broken.values()))
        raise ConfigError(
            f"none of the {len(broken)} checkpoints in {str(run)!r} is whole; the newest: {defect}",
            expected="a whole checkpoint",
            fix="begin anew, without `resume_from_checkpoint`",
        )
    return True if chosen is None else str(chosen)


def warn_of_lacks(checkpoint: Any) -> None:
    """Say so if a run goes on from a checkpoint that `save_only_model` has left without the state of the run.

    Args:
        checkpoint (`str` or `bool`, *optional*): What `choose_checkpoint` has returned.
    """
    if isinstance(checkpoint, str) and Path(checkpoint, _STATE).is_file() and not any(Path(checkpoint).glob(_RANDOM)):
        logger.warning(
            "%s holds the model only, as `save_only_model=True` makes it: the run goes on from its weights and its "
            "step, but optimizer, schedule of the learning rate and random numbers begin anew, so that it does not "
            "end as a run that was not stopped",
            checkpoint,
        )


def find_best(state: Any, checkpoint: Path) -> str | None:
    """Return the best checkpoint of a run that goes on: the one beside, if it is there.

    The path that was noted is the one of its time: relative to another folder, or of another place of the run.

    Args:
        state (`TrainerState`): As it was noted.
        checkpoint (`Path`): What the run goes on from.
    """
    best = checkpoint.parent / f"checkpoint-{state.best_global_step}"
    return str(best) if best.is_dir() else state.best_model_checkpoint


def _newest_whole_with_a_word(run: Path) -> tuple[Path | None, dict[Path, str]]:
    chosen, broken = newest_whole(run)
    for folder, defect in broken.items():
        logger.warning("%s is not whole and is passed over: %s", folder, defect)
    return chosen, broken


def _require_whole(folder: Path) -> None:
    defect = find_defect(folder)
    if defect is None:
        return
    other, _ = newest_whole(folder.parent)
    fix = "give another one, or none to begin anew" if other is None else f"go on from {str(other)!r}"
    raise ConfigError(f"the checkpoint {str(folder)!r} is not whole: {defect}", expected="a whole checkpoint", fix=fix)


def _defect_without_list(folder: Path) -> str | None:
    state = folder / _STATE
    if not state.is_file():
        return f"`{_STATE}`, which is written last, is missing"
    names = {path.name for path in _files(folder)}
    if "optimizer.pt" in names and "scheduler.pt" not in names:
        return "`scheduler.pt` is missing"
    for path in _files(folder):
        defect = _defect_of_file(path)
        if defect is not None:
            return f"`{path.relative_to(folder).as_posix()}` {defect}"
    return None


def _defect_of_file(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            return _defect_of_safetensors(path)
        if path.suffix in _ZIPS:
            return _defect_of_zip(path)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            shards = content.get("weight_map", {}) if path.name.endswith(".index.json") else {}
            missing = sorted({name for name in shards.values() if not (path.parent / name).is_file()})
            return f"names `{missing[0]}`, which is missing" if missing else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        return "is cut off or damaged"
    return None


def _defect_of_safetensors(path: Path) -> str | None:
    """Compare the size with what the header says. The format: https://github.com/huggingface/safetensors."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            return "is cut off or damaged"
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size:,} bytes of {expected:,}"


def _defect_of_zip(path: Path) -> str | None:
    """Look for the list of contents at the end, which `torch.save` writes last; older files are no zips."""
    with open(path, "rb") as file:
        magic = file.read(len(_ZIP_MAGIC))
    if not magic:
        return "is empty"
    return "is cut off or damaged" if _ZIP_MAGIC.startswith(magic) and not zipfile.is_zipfile(path) else None


def _files(folder: Path) -> Iterator[Path]:
    ours = {folder / FILE_LIST, folder / f"{FILE_LIST}.tmp", folder / UNFINISHED}
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in ours)


def _write_through(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, or the names in a folder, where the file system can be asked for that."""
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
