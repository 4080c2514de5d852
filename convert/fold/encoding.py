"""Rows in fewer bytes than the model's own values take: their layout, and the conversion of values.

Written by hand, since no library stores slices of several types in one row, which one read then fetches; and the
reader travels with the checkpoint and needs torch alone (``prefold.runtime.storage_prefold.decoded``).
"""

from dataclasses import dataclass
from math import ceil

import torch

from prefold.common.errors import UsageError

# The largest value of a type; a type without one here has the range of the model's own, and no scales.
_LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}
_SCALE = torch.float32
# What a row's length is a multiple of: every type's size, so that a row can be seen as values of each.
_ALIGNMENT = 16


@dataclass(frozen=True)
class Slice:
    """The place of one column's values in a row.

    Attributes:
        start: bytes from the start of the row.
        width: values.
        dtype: of these, as torch spells it.
        scale: byte offset of their factor, a float32; None where there is none.
    """

    start: int
    width: int
    dtype: str
    scale: int | None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the values."""
        return _dtype(self.dtype)


@dataclass(frozen=True)
class Encoding:
    """The layout of a row: slices of all columns, the residual first; ``native`` is the type of values once read."""

    slices: list[Slice]
    row_bytes: int
    native: str

    @property
    def width(self) -> int:
        """The length of a row in values of the model's own type."""
        return self.row_bytes // _dtype(self.native).itemsize

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the bytes of ``[tokens, row_width]`` finite values, ``[tokens, row_bytes]``."""
        stored = torch.zeros(len(rows), self.row_bytes, dtype=torch.uint8)
        for part, values in zip(self.slices, rows.split([part.width for part in self.slices], 1), strict=True):
            if part.scale is not None:
                scale = _scale(values, part.torch_dtype)
                _put(stored, part.scale, scale)
                values = _rounded(values.to(_SCALE) / scale, part.torch_dtype)
            _put(stored, part.start, values.to(part.torch_dtype))
        return stored


def encoding_of(widths: list[int], native: torch.dtype, dtype: torch.dtype, *, residual: bool = False) -> Encoding:
    """Lay out a row whose columns, and ``residual`` slice, which comes first, have a dtype: values first, then scales.

    Raises:
        UsageError: ``native``, the model's type, is as small.
    """
    if dtype.itemsize >= native.itemsize:
        raise UsageError(f"--table-dtype {_name(dtype)}: no smaller than the model's {_name(native)}")
    dtypes = [dtype if number or residual else native for number in range(len(widths))]
    at = [
        sum(width * each.itemsize for width, each in zip(widths[:n], dtypes, strict=False)) for n in range(len(dtypes))
    ]
    scaled = [number for number, each in enumerate(dtypes) if each in _LARGEST]
    first = _aligned(at[-1] + widths[-1] * dtypes[-1].itemsize, _SCALE.itemsize)
    scales = {number: first + index * _SCALE.itemsize for index, number in enumerate(scaled)}
    parts = [Slice(at[n], widths[n], _name(dtypes[n]), scales.get(n)) for n in range(len(dtypes))]
    return Encoding(parts, _aligned(first + len(scaled) * _SCALE.itemsize, _ALIGNMENT), _name(native))


def _scale(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return each row's largest value over the type's largest, ``[tokens, 1]``; 1 where all values are zero."""
    scale = values.to(_SCALE).abs().amax(1, keepdim=True) / _LARGEST[dtype]
    return scale.where(scale > 0, 1)


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Clamp values to the range of a type, and round them where the type is of integers."""
    largest = _LARGEST[dtype]
    return (values if dtype.is_floating_point else values.round()).clamp(-largest, largest)


def _put(stored: torch.Tensor, start: int, values: torch.Tensor) -> None:
    found = values.contiguous().view(torch.uint8)
    stored[:, start : start + found.shape[1]] = found


def _aligned(size: int, step: int) -> int:
    return ceil(size / step) * step


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
