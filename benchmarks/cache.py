"""What of a file the system holds in memory, and how to make it let go of that."""

import ctypes
import mmap
import os
import re
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def warm(path: Path) -> None:
    """Read a file, so that the system holds all of it."""
    with path.open("rb", buffering=0) as file:
        piece = bytearray(1 << 20)
        while file.readinto(piece):
            pass


def drop(path: Path) -> None:
    """Let this process and then the system forget what they hold of a file, which stays mapped as it is."""
    libc = ctypes.CDLL(None, use_errno=True)
    for start, stop in _mappings(path):  # the system keeps what a process has touched
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise", str(path))
    with path.open("rb") as file:
        os.fsync(file.fileno())  # nor does it drop what is not on the disk yet
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _mappings(path: Path) -> list[tuple[int, int]]:
    """Return where a file is mapped into this process."""
    found = []
    for line in _MAPS.read_text().splitlines():
        match = re.fullmatch(r"([0-9a-f]+)-([0-9a-f]+) (\S+ ){3}\d+ +(.+)", line)
        if match and match[4] == str(path.resolve()):
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


def resident_share(path: Path) -> float:
    """Return which part of a file's pages the system holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    held = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as memory:
        start = ctypes.c_char.from_buffer(memory)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), held)
        del start  # else the mapping could not be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return sum(page & 1 for page in held) / len(held)
