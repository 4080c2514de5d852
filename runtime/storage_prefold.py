"""Placement of a table's rows in host memory or in a file, and the fetching of a pass's rows.

This file travels in every folded checkpoint beside ``modeling_prefold.py``, and needs torch alone.
"""

import hashlib
import json
import mmap
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.nn import functional

PLACEMENTS = ("device", "host", "disk")
_DTYPES = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_MAX_HEADER = 100_000_000  # bytes: the limit of safetensors' own reader
# Small enough to stay in a core's cache between being read and being hashed.
_PIECE = 256 << 10
# Hits and misses of open files: a look-up in compiled code is given tensors and numbers alone.
_COUNTS: dict[int, list[int]] = {}
# More rows than these are asked for by a thread of its own, so that the first are used while the last are on their way.
_FEW = 256


class TableError(OSError):
    """A table's file is missing, or has changed since it was written."""


@dataclass(frozen=True)
class Extent:
    """The place of one tensor in a file: bytes from its beginning, shape and type."""

    path: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self, memory: memoryview, sha256: str) -> None:
        """Read the tensor into ``memory``, in turns if that is smaller than the tensor.

        Raises:
            TableError: the file is cut short, or its bytes are not those that ``sha256`` was made of.
        """
        digest, at = hashlib.sha256(), 0
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start)
            while at < self.size:
                offset = at % len(memory)
                read = file.readinto(memory[offset : offset + min(_PIECE, self.size - at)])
                if not read:
                    raise TableError(f"{self.path}: cut short, its table ends {self.size - at:,} bytes early")
                digest.update(memory[offset : offset + read])
                at += read
        if digest.hexdigest() != sha256:
            raise TableError(f"{self.path}: not the table that was written (its hash differs)")


def find_extent(files: Iterable[str], names: Sequence[str]) -> Extent:
    """Find a tensor, by the first of its names that there is, in safetensors files.

    Raises:
        TableError: none has it, or the one that does is not whole.
    """
    for path in files:
        try:
            extent = _found(path, names)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise TableError(f"{path}: not a whole safetensors file") from error
        if extent and os.path.getsize(path) < extent.start + extent.size:
            raise TableError(f"{path}: cut short, its table ends after {os.path.getsize(path):,} bytes")
        if extent:
            return extent
    raise TableError(f"{names[0]}: no file of the checkpoint has this table")


def _found(path: str, names: Sequence[str]) -> Extent | None:
    """Return the place of a tensor by a safetensors file's header, or None."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError("no header is as long")
        header = json.loads(file.read(length))
    for entry in (header[name] for name in names if name in header):
        first, end = entry["data_offsets"]
        extent = Extent(os.path.abspath(path), 8 + length + first, tuple(entry["shape"]), _DTYPES[entry["dtype"]])
        if first < 0 or end - first != extent.size:
            raise ValueError("offsets are not those of the shape")
        return extent
    return None


class HostRows:
    """A table in host memory, ``[rows, width]``."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    @classmethod
    def load(cls, extent: Extent, sha256: str) -> "HostRows":
        """Read a table straight into the memory where it stays.

        Raises:
            TableError: the file is cut short, or holds another table.
        """
        table = torch.empty(extent.shape, dtype=extent.dtype)
        extent.read(table.view(-1).view(torch.uint8).numpy().data, sha256)
        return cls(table)

    def fetch(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``[batch, seq]`` tokens, ``[batch, seq, width]``, on the device of these."""
        return _sent(_gathered(input_ids.to("cpu"), self.table, input_ids.is_cpu), input_ids.device)


class DiskRows:
    """A table in a file, ``[rows, width]``, mapped into memory: its pages are read when they are needed.

    Processes that map the same file share its pages in memory, where the system keeps those that were used last. The
    file must stay as it is: any change of it is an error of the next fetch.
    """

    def __init__(self, extent: Extent, stamp: str | None = None) -> None:
        """``stamp`` is what the file has to be, if that is known."""
        self.extent = extent
        if stamp:
            _require_unchanged(extent.path, stamp)
        self._file = os.open(extent.path, os.O_RDONLY)
        self._stamp = stamp or _stamp(os.fstat(self._file))
        self._table = _mapped(self._file, extent)
        _COUNTS[self._file] = [0, 0]

    @classmethod
    def load(cls, extent: Extent, sha256: str) -> "DiskRows":
        """Read a table once, a piece at a time, to see that it is whole, and map it.

        Raises:
            TableError: the file is cut short, holds another table, or cannot be mapped where it lies.
        """
        rows = cls(extent)
        extent.read(memoryview(bytearray(_PIECE)), sha256)
        return rows

    def __reduce__(self) -> Any:
        return DiskRows, (self.extent, self._stamp)  # a copy, or another process, maps the same file

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            _COUNTS.pop(self._file, None)
            os.close(self._file)

    @property
    def table(self) -> torch.Tensor:
        """The table, ``[rows, width]``; reading beyond a shortened file would end the process.

        Raises:
            TableError: the file has changed since it was mapped.
        """
        _require_unchanged(self.extent.path, self._stamp)
        return self._table

    @property
    def hits(self) -> int:
        """Rows that passes found in memory, each once a pass; 0 where the system does not tell."""
        return _COUNTS[self._file][0]

    @property
    def misses(self) -> int:
        """Rows that passes had to have read from the disk, in whole or in part; 0 where the system does not tell."""
        return _COUNTS[self._file][1]

    def require_elsewhere(self, folder: str) -> None:
        """Refuse a folder to write to, if the table's file lies there under any name."""
        mapped = os.fstat(self._file)
        beside = [entry.stat() for entry in os.scandir(folder) if entry.is_file()] if os.path.isdir(folder) else []
        if any(os.path.samestat(each, mapped) for each in beside):
            raise TableError(f"{self.extent.path}: the table is mapped from there: save the model to another folder")

    def fetch(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ``[batch, seq]`` tokens, ``[batch, seq, width]``, on the device of these.

        Raises:
            TableError: the file has changed since it was mapped.
        """
        ids, extent = input_ids.to("cpu"), self.extent
        fetch = _fetch_compiled if torch.compiler.is_compiling() else _fetch
        rows = fetch(ids, self._table, extent.path, self._stamp, self._file, extent.start, input_ids.is_cpu)
        return _sent(rows, input_ids.device)


def _fetch(
    input_ids: torch.Tensor,
    table: torch.Tensor,
    path: str,
    stamp: str,
    file: int,
    start: int,
    stays: bool,
) -> torch.Tensor:
    _require_unchanged(path, stamp)
    absent = _absent(file, start, table.shape[1] * table.itemsize, input_ids.unique().tolist())
    if len(absent) <= _FEW:
        _prefetch(file, absent)
    else:
        # Not a daemon: one that is inside torch when the interpreter ends takes the process down.
        threading.Thread(target=_prefetch, args=(file, absent)).start()
    rows = _gathered(input_ids, table, stays)
    _require_unchanged(path, stamp)  # nor while they were read
    return rows


# What happens to a file is nothing that a compiler could trace: to it, a fetch is one operation. A program may load
# several copies of this file, one with each checkpoint: each has an operation, and so an error, of its own.
_OPERATION = f"prefold::fetch_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}"
_fetch_compiled = torch.library.custom_op(_OPERATION, _fetch, mutates_args=())


@_fetch_compiled.register_fake
def _(input_ids: torch.Tensor, table: torch.Tensor, *_: Any) -> torch.Tensor:
    return table.new_empty(*input_ids.shape, table.shape[1])


def _gathered(input_ids: torch.Tensor, table: torch.Tensor, stays: bool) -> torch.Tensor:
    """Gather rows on the CPU; those for a device in memory that it can copy from by itself."""
    if stays:
        return functional.embedding(input_ids, table)
    rows = torch.empty(*input_ids.shape, table.shape[1], dtype=table.dtype, pin_memory=True)
    torch.index_select(table, 0, input_ids.flatten(), out=rows.view(-1, table.shape[1]))
    return rows


def _sent(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    return rows.to(device, non_blocking=True)


def _absent(file: int, start: int, size: int, rows: list[int]) -> list[tuple[int, int]]:
    """Return the places of those rows, of ``size`` bytes, that are not in memory as a whole, and count both.

    Where the system does not tell, all rows are returned and none is counted.
    """
    places = [(start + row * size, size) for row in rows]
    try:
        read = memoryview(bytearray(size))
        absent = [place for place in places if _held(file, read, place[0]) < size]
    except (AttributeError, OSError, OverflowError):  # no such call, not of this file; a token without a row
        return places
    counts = _COUNTS[file]
    counts[0] += len(places) - len(absent)
    counts[1] += len(absent)
    return absent


def _held(file: int, memory: memoryview, start: int) -> int:
    """Read as many bytes as the system need not wait for; returns their number."""
    try:
        return os.preadv(file, [memory], start, os.RWF_NOWAIT)
    except BlockingIOError:
        return 0


def _prefetch(file: int, places: list[tuple[int, int]]) -> None:
    """Ask the system for parts of a file, all at once: left to itself it would read one page after the other."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError, OverflowError):  # a file that was closed since, a token without a row: for the reader to say
        for start, size in places:
            os.posix_fadvise(file, start, size, os.POSIX_FADV_WILLNEED)


def _mapped(file: int, extent: Extent) -> torch.Tensor:
    try:
        memory = mmap.mmap(file, extent.start + extent.size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise TableError(f"{extent.path}: cannot be mapped ({error}): place the table in host memory") from error
    memory.madvise(mmap.MADV_RANDOM)  # what lies around a row is not what is needed next
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # and nobody writes to it
        values = torch.frombuffer(memory, dtype=extent.dtype, count=prod(extent.shape), offset=extent.start)
    return values.view(extent.shape)


def _stamp(status: os.stat_result) -> str:
    """Return the identity of a file and of its last write, as a text, which no compiler counts in."""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


def _require_unchanged(path: str, stamp: str) -> None:
    try:
        same = _stamp(os.stat(path)) == stamp
    except OSError as error:
        raise TableError(f"{path}: gone while it was in use ({error.strerror}): load the model again") from error
    if not same:
        raise TableError(f"{path}: changed while it was in use: load the model again")


def hash_of(table: torch.Tensor) -> str:
    """Return the hash that ``Extent.read`` compares a table's with."""
    digest = hashlib.sha256()
    for rows in table.detach().split(max(1, _PIECE // (table.shape[1] * table.itemsize))):
        digest.update(rows.to("cpu").contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def decoded(stored: torch.Tensor, slices: list[dict[str, Any]], dtype: torch.dtype) -> torch.Tensor:
    """Return the values of rows that are stored in fewer bytes, ``[..., bytes]`` in, ``[..., row_width]`` out."""
    return torch.cat([_decoded(stored, each, dtype) for each in slices], -1)


def _decoded(stored: torch.Tensor, part: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, part["dtype"])
    values = stored[..., part["start"] : part["start"] + part["width"] * kind.itemsize].view(kind)
    if part["scale"] is None:
        return values.to(dtype)
    scale = stored[..., part["scale"] : part["scale"] + torch.float32.itemsize].view(torch.float32)
    return (values.to(torch.float32) * scale).to(dtype)
