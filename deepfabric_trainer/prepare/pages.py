"""Giving back the memory of files that were read through a memory map."""

import ctypes
import mmap
from collections.abc import Collection
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def give_back_pages(files: Collection[str]) -> None:
    """Let the system take back the pages of mapped files, as far as this process only reads them; on Linux.

    Whatever is read of a mapped file counts as this process's memory until it ends, however large the file is. The
    content stays what it is: who reads it again gets it from the file.

    Args:
        files (`Collection[str]`): Their full paths.
    """
    if not files or not _MAPS.exists():
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # address range, permissions, offset, device, inode, path
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in files and fields[1].startswith("r--"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)
