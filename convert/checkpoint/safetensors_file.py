"""Safetensors files as header and bytes. Tensors pass through without being decoded.

The format: eight bytes with the header's length, the header as JSON, then the tensors one after another
(https://huggingface.co/docs/safetensors). The library checks what is read. Written here by hand because the library
wants a whole file's tensors in memory, and because pass-through must not touch a byte.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prefold.convert.checkpoint.files import require_fetched
from prefold.convert.errors import BrokenCheckpoint

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Small enough to stay in a core's cache between being read and being written: eight times faster than 16 MB.
_COPY_BYTES = 512 << 10
# Rows start on a page, so that a mapped table reads no page twice for its first row.
_ALIGNMENT = 4096
_REASON = 160  # characters: the library lists every type that it knows


@dataclass(frozen=True)
class Entry:
    """One tensor in a file, with the dtype of its header: ``size`` bytes from ``start``, counted over the file.

    The bytes of the tensor between the two numbers of ``zeros`` are read as zeros, whatever the file holds there.
    """

    file: Path
    dtype: str
    shape: list[int]
    start: int
    size: int
    zeros: tuple[int, int] = (0, 0)

    @property
    def is_floating_point(self) -> bool:
        """Whether the values are real numbers of any width."""
        return self.dtype.startswith(("F", "BF"))

    def with_zero_row(self, row: int) -> "Entry":
        """Return the tensor with zeros in a row, whatever the file holds there."""
        width = self.size // self.shape[0]
        return replace(self, zeros=(row * width, (row + 1) * width))

    def chunks(self) -> Iterator[memoryview]:
        """Yield the tensor's bytes, a part at a time; every part lies in the same memory as the one before."""
        buffer, at = memoryview(bytearray(min(self.size, _COPY_BYTES))), 0
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.start)
            while at < self.size:
                read = file.readinto(buffer[: self.size - at])
                if not read:
                    raise BrokenCheckpoint(f"{self.file.name}: ends before its tensors do")
                first, last = (min(max(zero - at, 0), read) for zero in self.zeros)
                buffer[first:last] = bytes(last - first)
                at += read
                yield buffer[:read]

    def tensor(self) -> torch.Tensor:
        """Read the tensor into memory."""
        data = bytearray()
        for piece in self.chunks():
            data += piece
        if not data:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written: its fields of the header, and the source of its bytes; ``entry`` if it passes through."""

    dtype: str
    shape: list[int]
    size: int
    chunks: Callable[[], Iterable[bytes | memoryview]]
    entry: Entry | None = None


def passed_through(entry: Entry) -> Outgoing:
    """Describe a tensor that is written as it was read."""
    return Outgoing(entry.dtype, entry.shape, entry.size, entry.chunks, entry)


def cast(entry: Entry, dtype: torch.dtype) -> Outgoing:
    """Describe a tensor that is written in another floating-point type; others pass through."""
    if not entry.is_floating_point:
        return passed_through(entry)
    size = math.prod(entry.shape) * dtype.itemsize
    return Outgoing(dtype_name(dtype), entry.shape, size, lambda: [as_bytes(entry.tensor().to(dtype))])


def dtype_name(dtype: torch.dtype) -> str:
    """Spell a torch dtype as a safetensors header does."""
    return _NAMES[dtype]


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's memory, not a copy of it where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def read_header(path: Path) -> dict[str, Entry]:
    """Read which tensors a file holds, by name, without reading them; the library judges the header.

    Raises:
        BrokenCheckpoint: the header is none, disagrees with the file's size, or has a type that torch lacks.
    """
    require_fetched(path)
    try:
        with safe_open(path, framework="pt"):
            pass  # opened, it is whole: offsets neither overlap nor leave holes, sizes are those of the shapes
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")[:_REASON]
        raise BrokenCheckpoint(f"{path.name}: cut short or broken: {reason}") from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, fields in header.items():
        dtype = fields.get("dtype") if isinstance(fields, dict) else fields  # the library takes a list for an object
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise BrokenCheckpoint(f"{path.name}: {name} has the type {dtype}, which torch lacks")
    return {name: _entry(path, 8 + length, fields) for name, fields in header.items()}


def _entry(path: Path, data: int, fields: dict[str, Any]) -> Entry:
    start, stop = fields["data_offsets"]
    return Entry(path, fields["dtype"], fields["shape"], data + start, stop - start)


def _encoded_header(tensors: dict[str, Outgoing], metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, offset + tensor.size]}
        offset += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % _ALIGNMENT
    return struct.pack("<Q", len(text) + padding) + text + b" " * padding


def write_file(
    path: Path,
    tensors: dict[str, Outgoing],
    metadata: dict[str, str] | None = None,
    written: Callable[[int], None] = lambda _: None,
) -> None:
    """Stream tensors into a safetensors file and flush it to the disk; ``written`` is called with each piece's size."""
    with path.open("xb") as file:
        file.write(_encoded_header(tensors, {"format": "pt"} | (metadata or {})))
        for name, tensor in tensors.items():
            size = 0
            for piece in tensor.chunks():
                file.write(piece)
                size += len(piece)
                written(len(piece))
            if size != tensor.size:
                raise BrokenCheckpoint(f"{name}: {size:,} bytes came where {tensor.size:,} were announced")
        file.flush()
        os.fsync(file.fileno())


def file_of(tensors: dict[str, Outgoing]) -> Path | None:
    """Return the file that holds these tensors as they are to be written, and no others; None where there is none."""
    entries = {name: tensor.entry for name, tensor in tensors.items()}
    first = next(iter(entries.values()), None)
    return first.file if first and entries == read_header(first.file) else None


def file_overhead(tensors: dict[str, Outgoing]) -> int:
    """Return the bytes of a file that are not tensors."""
    return len(_encoded_header(tensors, {"format": "pt"}))


def names_in_order(path: Path) -> list[str]:
    """Return a file's tensors by name, in the order in which transformers goes through them."""
    with safe_open(path, framework="pt") as file:
        return list(file.keys())
