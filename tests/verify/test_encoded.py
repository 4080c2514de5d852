"""Rows in fewer bytes as a check reads them, beside what the runtime module makes of them."""

from dataclasses import asdict

import pytest
import torch

from prefold.convert.fold.encoding import encoding_of
from prefold.convert.options import TABLE_DTYPES
from prefold.runtime.storage_prefold import decoded
from prefold.verify.probe.encoded import is_padding, numbers_of, steps, values_of

KINDS = pytest.mark.parametrize("kind", [getattr(torch, name) for name in TABLE_DTYPES])


@KINDS
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("native", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_it_reads_the_same_values_as_the_runtime(kind: torch.dtype, residual: bool, native: torch.dtype):
    if kind.itemsize >= native.itemsize:
        pytest.skip("no smaller")
    encoding = encoding_of([5, 9, 7], native, kind, residual=residual)
    stored = encoding.encode(torch.randn(40, 21).to(native))
    assert torch.equal(values_of(stored, encoding), decoded(stored, asdict(encoding)["slices"], native))


@KINDS
def test_every_byte_is_a_slices_or_a_scales_or_padding(kind: torch.dtype):
    encoding = encoding_of([5, 9, 7], torch.float32, kind)
    scales = 0 if kind == torch.bfloat16 else 2 * 4
    assert is_padding(encoding).sum() == encoding.row_bytes - 5 * 4 - 16 * kind.itemsize - scales
    stored = encoding.encode(torch.randn(3, 21))
    rubbish = torch.where(is_padding(encoding), 255, stored)
    assert torch.equal(values_of(rubbish, encoding), values_of(stored, encoding))


def numbers(kind: torch.dtype) -> torch.Tensor:
    """Return all finite positive numbers of a type, in order, and zero."""
    bits = {1: torch.uint8, 2: torch.uint16}[kind.itemsize]
    codes = torch.arange(2 ** (8 * kind.itemsize)).to(bits).view(kind).double()
    return codes[codes.isfinite() & (codes >= 0)].unique()


@pytest.mark.parametrize("scale", [1.0, 2.0**-7, 0.3])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.int8])
def test_a_step_is_how_far_neighbours_are_apart(kind: torch.dtype, scale: float):
    every = torch.arange(128).double() if kind == torch.int8 else numbers(kind)
    low, high = every[:-1], every[1:]
    scales = torch.tensor([[scale]])
    between = (low + (high - low) * 0.37)[None] * scales.double()
    for sign in (1, -1):
        assert torch.allclose(steps(sign * between, kind, scales), (high - low)[None] * scales.double(), rtol=1e-12)


def test_a_value_of_a_type_without_scales_has_the_scale_one():
    encoding = encoding_of([3, 3], torch.float32, torch.bfloat16)
    values = torch.tensor([[1.5, 2.0, -3.0, 0.25, 0.5, 4.0]])
    found, scales = numbers_of(encoding.encode(values), encoding.slices[1])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), values[:, 3:])
    assert scales.tolist() == [[1.0]]
