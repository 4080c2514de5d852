"""Whole files under a second name: shared where the system can, else copied without passing through this process."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from prefold.convert.errors import StorageError

# What clones a file on Linux (``FICLONE``); Python names it since 3.12.
_CLONE = 0x40049409
# Bytes to copy between two calls of ``written``.
_PIECE = 16 << 20


def share_file(source: Path, target: Path, *, link: bool) -> bool:
    """Give ``target`` the bytes of ``source`` without copying them; returns False where the file system cannot.

    With ``link`` both are one file. Else ``target`` is a clone: a file of its own, whose blocks the file system shares
    until either is written to.

    Raises:
        StorageError: ``link`` is set, and the system refuses, as between two file systems.
    """
    if link:
        try:
            target.hardlink_to(source.resolve(strict=True))  # the system links a symbolic link itself
        except OSError as error:
            raise StorageError(
                f"{source}: cannot be linked to {target.parent.parent} ({error.strerror}): leave --link out to copy it"
            ) from error
        return True
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write, _CLONE, read.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def copy_file(source: Path, target: Path, written: Callable[[int], None] = lambda _: None) -> None:
    """Copy a file to the disk, by the system where it can; ``written`` is called with each piece's size."""
    with source.open("rb", buffering=0) as read, target.open("xb") as write:
        while piece := _copied(read.fileno(), write.fileno()):
            written(piece)
        while left := read.read(_PIECE):  # by the system
            written(write.write(left))
        write.flush()
        os.fsync(write.fileno())


def _copied(source: int, target: int) -> int:
    """Let the system copy the next piece; returns its size, 0 at the end and where there is no such call."""
    try:
        return os.copy_file_range(source, target, _PIECE) if hasattr(os, "copy_file_range") else 0
    except OSError:  # as between two file systems; what is wrong with the disk the next write tells
        return 0
