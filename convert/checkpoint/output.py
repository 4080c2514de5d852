"""A folder that appears whole or not at all."""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefold.common.errors import UsageError
from prefold.convert.checkpoint.files import CONFIG, own_file
from prefold.convert.checkpoint.source import read_json
from prefold.convert.errors import BrokenCheckpoint, OutputExists, StorageError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextmanager
def output_folder(out: Path, *, force: bool = False, inputs: Collection[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that takes its place when the block ends without an error.

    The folder is new and locked while it is written. What a run that was killed left behind is removed by the next.
    Where ``out`` is a link, the folder that it leads to is written, and the link stays.

    Raises:
        OutputExists: ``out`` exists and ``force`` is not set, or another run is writing it.
        StorageError: the folder cannot be made.
        UsageError: one of ``inputs`` lies where the work is done, and would be removed.
    """
    out = _target(out)
    work = _work(out)
    _refuse_inputs(inputs, work, _aside(out))
    _restore(out)
    _refuse_existing(out, force=force)
    made = [parent for parent in out.parents if not parent.exists()]
    locks = [_claim(work)]
    try:
        _refuse_existing(out, force=force)
        yield work
        _sync(work)
        if out.exists():
            locks.append(_opened(out))
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            _exchange(work, out)
        else:
            work.rename(out)
    finally:
        # After an exchange this is what ``out`` was before; after an error, what was written so far.
        if _is_one_of(work, locks):
            shutil.rmtree(work, ignore_errors=True)
        for lock in locks:
            os.close(lock)
        if not out.exists():
            _remove_empty(made)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin where the disk has less than ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free")


def _refuse_existing(out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise OutputExists(f"{out}: exists already; --force replaces it once the new one is verified")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_fold(out))):
        raise OutputExists(f"{out}: is no folded checkpoint, so --force does not replace it")


def _is_fold(out: Path) -> bool:
    try:
        return isinstance(read_json(own_file(out, CONFIG)).get("prefold"), dict)
    except BrokenCheckpoint:
        return False


def _target(out: Path) -> Path:
    try:
        target = out.resolve()
        _aside(target).exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"{out}: leads nowhere: {error}") from error
    return target


def _work(out: Path) -> Path:
    return out.with_name(f".{out.name}.prefold")


def _refuse_inputs(inputs: Collection[Path], *folders: Path) -> None:
    for path in inputs:
        for folder in folders:
            if path.resolve().is_relative_to(folder):
                raise UsageError(f"{path}: lies where the work for OUT is done, and would be removed: rename it")


def _claim(work: Path) -> int:
    """Make and lock the folder, in the place of a dead run's; returns the lock."""
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(work)
        work.mkdir()
        return _locked(work)
    except OSError as error:
        raise StorageError(f"{work.parent}: cannot be written to: {error.strerror}") from error


def _remove_dead(work: Path) -> None:
    """Remove a dead run's folder; a link or a file of that name is somebody else's."""
    if work.is_symlink() or (work.exists() and not work.is_dir()):
        raise StorageError(f"{work}: is no folder of a conversion: remove it")
    if work.exists():
        lock = _locked(work)
        shutil.rmtree(work)
        os.close(lock)


def _locked(work: Path) -> int:
    lock = _opened(work)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise _busy(work) from error
    if not _is_one_of(work, [lock]):  # it was put in place between our opening and our locking it
        os.close(lock)
        raise _busy(work)
    return lock


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _busy(work: Path) -> OutputExists:
    return OutputExists(f"{work.parent / work.name[1:].removesuffix('.prefold')}: another conversion is writing it")


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.prefold-old")


def _restore(out: Path) -> None:
    """Bring back an output that a killed run had set aside."""
    if _aside(out).is_dir() and not _aside(out).is_symlink() and not out.exists():
        _aside(out).rename(out)


def _is_one_of(folder: Path, opened: list[int]) -> bool:
    inodes = {(found.st_dev, found.st_ino) for found in map(os.fstat, opened)}
    return os.path.lexists(folder) and (folder.lstat().st_dev, folder.lstat().st_ino) in inodes


def _exchange(work: Path, out: Path) -> None:
    """Swap two folders in one step, so that a crash leaves one whole ``out`` or the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = (_AT_FDCWD, os.fsencode(work), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE)
    if hasattr(libc, "renameat2") and libc.renameat2(*paths) == 0:
        return
    if hasattr(libc, "renameat2") and ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
        raise StorageError(f"{out}: cannot be replaced: {os.strerror(ctypes.get_errno())}")
    # Where the system cannot swap, the old output steps aside first and returns if the new one cannot follow.
    aside = _aside(out)
    out.rename(aside)
    try:
        work.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside)
