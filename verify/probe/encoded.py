"""Values of rows in fewer bytes, read by code of its own: a proof must not run the code that it checks.

The type gives the most that a stored value may be off: half of what two neighbours in it are apart, since encoding
takes the nearer one.
"""

import torch

from prefold.convert.fold import Encoding, Slice

_SCALE = torch.float32


def numbers_of(stored: torch.Tensor, part: Slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of a slice as they are stored, and their scales, ``[rows, width]`` and ``[rows, 1]``."""
    numbers = _view(stored, part.start, part.width, part.torch_dtype)
    if part.scale is None:
        return numbers, torch.ones(len(stored), 1, dtype=_SCALE)
    return numbers, _view(stored, part.scale, 1, _SCALE)


def values_of(stored: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Return ``[rows, row_bytes]`` as a folded model reads it, ``[rows, row_width]``."""
    native: torch.dtype = getattr(torch, encoding.native)
    return torch.cat([_values(*numbers_of(stored, part), part, native) for part in encoding.slices], 1)


def _values(numbers: torch.Tensor, scales: torch.Tensor, part: Slice, native: torch.dtype) -> torch.Tensor:
    return numbers.to(native) if part.scale is None else (numbers.to(_SCALE) * scales).to(native)


def scales_of(stored: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """Return the scales of all slices, ``[rows, slices]``; 1 where there is none."""
    return torch.cat([numbers_of(stored, part)[1] for part in encoding.slices], 1)


def is_padding(encoding: Encoding) -> torch.Tensor:
    """Return, for every byte of a row, whether it is in no slice and no scale, ``[row_bytes]``."""
    free = torch.ones(encoding.row_bytes, dtype=torch.bool)
    for part in encoding.slices:
        free[part.start : part.start + part.width * part.torch_dtype.itemsize] = False
        if part.scale is not None:
            free[part.scale : part.scale + _SCALE.itemsize] = False
    return free


def steps(values: torch.Tensor, dtype: torch.dtype, scales: torch.Tensor) -> torch.Tensor:
    """Return how far apart neighbours of a type are at ``values``, ``[rows, width]`` in float64.

    Of integers that is the scale everywhere; floating-point numbers double it with every power of two.
    """
    wide = scales.double()
    if not dtype.is_floating_point:
        return wide.expand_as(values)
    info = torch.finfo(dtype)
    exponent = torch.frexp((values.double() / wide).abs().clamp(min=info.smallest_normal)).exponent - 1
    return info.eps * torch.exp2(exponent.double()) * wide


def _view(stored: torch.Tensor, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return stored[:, start : start + count * dtype.itemsize].contiguous().view(dtype)
