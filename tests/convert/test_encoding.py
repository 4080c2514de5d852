"""Rows in fewer bytes: how far what is read is from what was stored, where everything lies, and what it saves."""

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefold.common.schema import from_json
from prefold.convert import UsageError
from prefold.convert.fold.encoding import Encoding, encoding_of
from prefold.convert.options import TABLE_DTYPES
from prefold.runtime.storage_prefold import decoded

PROPERTY = settings(deadline=None, max_examples=100)
SCALED = {torch.int8: 127, torch.float8_e4m3fn: 448}
# Ordinary values: what is divided in float32 rounds as such, and does not vanish.
VALUES = st.one_of(st.just(0.0), st.floats(2**-100, 2**100, width=32), st.floats(-(2**100), -(2**-100), width=32))
# Some of one size, as a projection's are, and some of sizes as different as they may be.
NORMAL = st.integers(0, 2**32 - 1).map(lambda seed: torch.randn(12, generator=torch.Generator().manual_seed(seed)))

KINDS = [getattr(torch, name) for name in TABLE_DTYPES]


@st.composite
def rows(draw: st.DrawFn) -> torch.Tensor:
    """Draw rows of four values of a residual and eight of a column, ``[rows, 12]`` in float32."""
    free = st.lists(VALUES, min_size=12, max_size=12).map(torch.tensor)
    return torch.stack(draw(st.lists(st.one_of(free, NORMAL), min_size=1, max_size=5)))


def read(encoding: Encoding, stored: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return rows as the runtime module reads them, of a section that was written as JSON."""
    return decoded(stored, json.loads(json.dumps(asdict(encoding)))["slices"], dtype)


def scales(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    largest = values.abs().amax(1, keepdim=True) / SCALED[kind]
    return largest.where(largest > 0, 1)


def bound(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Return half a step of a type: how far its nearest number may be from a value.

    Numbers of ``m`` bits behind the leading one are at most ``2**-m`` of a value apart; below the smallest that has a
    leading one they are as far apart as there. A division and a product in float32 round, too.
    """
    wide = values.double()
    rounding = 2**-22 * wide.abs()
    if kind == torch.int8:
        return scales(values, kind).double() / 2 + rounding
    if kind == torch.float8_e4m3fn:
        return torch.maximum(2**-4 * wide.abs(), 2**-10 * scales(values, kind).double()) + rounding
    return 2**-8 * wide.abs()


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(values=rows())
def test_a_value_is_at_most_half_a_step_off(kind: torch.dtype, residual: bool, values: torch.Tensor):
    encoding = encoding_of([4, 8], torch.float32, kind, residual=residual)
    found = read(encoding, encoding.encode(values))
    apart = (found - values.double()).abs()
    assert apart[:, 4:].le(bound(values[:, 4:], kind)).all()
    if residual:
        assert apart[:, :4].le(bound(values[:, :4], kind)).all()
    else:
        assert torch.equal(found[:, :4], values[:, :4].double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("native", [torch.float32, torch.float64])
def test_a_native_residual_is_read_back_bit_for_bit(kind: torch.dtype, native: torch.dtype):
    values = torch.randn(64, 48, dtype=native) * torch.logspace(-30, 30, 64, dtype=native)[:, None]
    encoding = encoding_of([16, 32], native, kind)
    assert torch.equal(read(encoding, encoding.encode(values), native)[:, :16], values[:, :16])


@pytest.mark.parametrize("native", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", SCALED)
def test_16_bit_rows_are_encoded_as_their_values_in_float32(kind: torch.dtype, native: torch.dtype):
    values = torch.randn(64, 48).to(native)
    encoding, wide = (encoding_of([16, 32], dtype, kind, residual=True) for dtype in (native, torch.float32))
    assert torch.equal(encoding.encode(values), wide.encode(values.float()))
    assert read(encoding, encoding.encode(values), native).dtype == native


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_are_read_back_as_zeros(kind: torch.dtype):
    encoding = encoding_of([5, 7], torch.float32, kind, residual=True)
    found = read(encoding, encoding.encode(torch.zeros(3, 12)))
    assert torch.equal(found, torch.zeros(3, 12, dtype=torch.float64))


@pytest.mark.parametrize("kind", SCALED)
def test_the_largest_value_of_a_column_keeps_its_place_at_the_end_of_the_range(kind: torch.dtype):
    values = torch.tensor([[1.0, -3.0, 2.0, 0.5], [1e-3, 0.0, 0.0, -7e-3]])
    encoding = encoding_of([2, 2], torch.float32, kind, residual=True)
    found = read(encoding, encoding.encode(values))
    for at in (slice(0, 2), slice(2, 4)):
        largest = values[:, at].abs().argmax(1, keepdim=True)
        assert torch.allclose(found[:, at].gather(1, largest), values[:, at].gather(1, largest).double(), rtol=1e-6)


def occupied(encoding: Encoding) -> list[tuple[int, int, int]]:
    """Return where every slice and every scale begins and ends, and of what size its numbers are."""
    places = []
    for part in encoding.slices:
        places.append((part.start, part.start + part.width * part.torch_dtype.itemsize, part.torch_dtype.itemsize))
        if part.scale is not None:
            places.append((part.scale, part.scale + 4, 4))
    return sorted(places)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(widths=st.lists(st.integers(1, 70), min_size=2, max_size=5), native=st.sampled_from([2, 4, 8]))
def test_rows_are_aligned_and_nothing_lies_upon_another(
    kind: torch.dtype, residual: bool, widths: list[int], native: int
):
    dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[native]
    if kind.itemsize >= dtype.itemsize:
        with pytest.raises(UsageError, match="no smaller than the model's bfloat16"):
            encoding_of(widths, dtype, kind, residual=residual)
        return
    encoding = encoding_of(widths, dtype, kind, residual=residual)
    places = occupied(encoding)
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(places))
    assert all(start % size == 0 for start, _, size in places)
    assert encoding.row_bytes % 16 == 0
    assert 0 <= encoding.row_bytes - places[-1][1] < 16
    assert [part.width for part in encoding.slices] == widths
    assert from_json(Encoding, json.loads(json.dumps(asdict(encoding)))) == encoding
    values = torch.randn(2, 3, sum(widths)).to(dtype)
    stored = encoding.encode(values.flatten(0, 1)).view(2, 3, -1)
    assert read(encoding, stored, dtype).shape == values.shape


def test_what_lies_behind_the_values_is_zero():
    encoding = encoding_of([3, 3], torch.float32, torch.int8)
    free = torch.ones(encoding.row_bytes, dtype=torch.bool)
    for start, end, _ in occupied(encoding):
        free[start:end] = False
    assert free.any()
    assert not encoding.encode(torch.randn(9, 6))[:, free].any()


# Residual, projections in the order of a pass, and the FFN of a parallel block.
WIDTHS = {
    "Pythia-410M": [1024, 3072, 1024],
    "Phi-1.5": [2048, 2048, 2048, 2048, 2048],
    "Llama-3-8B": [4096, 4096, 1024, 1024],
}


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("kind", SCALED)
def test_a_table_of_8_bits_is_hardly_more_than_half_of_one_of_16(kind: torch.dtype, name: str):
    encoding = encoding_of(WIDTHS[name], torch.bfloat16, kind, residual=True)
    assert encoding.row_bytes <= 0.51 * 2 * sum(WIDTHS[name])
    native = encoding_of(WIDTHS[name], torch.bfloat16, kind)
    assert encoding.row_bytes < native.row_bytes < 0.71 * 2 * sum(WIDTHS[name])


Quantized = Callable[[torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]


@pytest.fixture
def compressed() -> tuple[Quantized, Callable[[torch.Tensor, torch.dtype], torch.Tensor]]:
    """Return how compressed-tensors makes codes of rows and their scales, and how it makes the scales."""
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="compressed-tensors is not there")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")

    def args(kind: torch.dtype) -> object:
        form = "float" if kind.is_floating_point else "int"
        return quantization.QuantizationArgs(num_bits=8, type=form, symmetric=True, strategy="channel")

    def codes(values: torch.Tensor, scale: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        return forward.quantize(values, scale, torch.zeros_like(scale), args(kind), dtype=kind)

    def scale(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        return helpers.calculate_qparams(values.amin(1, keepdim=True), values.amax(1, keepdim=True), args(kind))[0]

    return codes, scale


@pytest.mark.parametrize("kind", SCALED)
def test_codes_are_those_of_compressed_tensors_for_the_same_scales(kind: torch.dtype, compressed):
    """Its own scales of int8 are smaller: the largest value becomes 127.5, which is cut to 127; here it becomes 127."""
    codes, scale = compressed
    values = torch.randn(512, 96) * torch.logspace(-6, 3, 512)[:, None]
    encoding = encoding_of([32, 96], torch.float32, kind)
    stored = encoding.encode(torch.cat([torch.zeros(512, 32), values], 1))
    part = encoding.slices[1]
    ours = stored[:, part.start : part.start + 96].contiguous()
    found = stored[:, part.scale : part.scale + 4].contiguous().view(torch.float32)
    assert torch.equal(codes(values, found, kind).view(torch.uint8), ours)
    assert torch.allclose(found, scale(values, kind) * (127.5 / 127 if kind == torch.int8 else 1), rtol=1e-6)
