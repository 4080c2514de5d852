"""The folded model says what its source says, for every architecture and dtype."""

from itertools import product
from pathlib import Path

import pytest
import torch
from tests.conftest import PARALLEL, SHAPES, tokens
from tests.runtime.pairs import (
    Pair,
    cached_logits,
    exact_logits,
    left_padded,
    logits,
    make_pair,
    rounding_error,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=product(SHAPES, DTYPES), ids=lambda each: f"{each[0]}-{each[1]}".replace("torch.", ""))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    model_type, dtype = request.param
    return make_pair(tmp_path_factory.mktemp(model_type), model_type, dtype)


def assert_same(folded: torch.Tensor, source: torch.Tensor) -> None:
    """Demand equality of every bit, and in fp32 of all but the rounding of a matrix product.

    A product of few rows may sum in another order than the product of many rows that made the table. 16-bit
    values are summed in fp32 and rounded, which hides it; fp32 shows it in the last bits of a one-row step.
    """
    assert folded.dtype == source.dtype
    exact = source.dtype != torch.float32
    torch.testing.assert_close(folded, source, rtol=0 if exact else 1.3e-6, atol=0 if exact else 1e-5)


def test_prefill_equals_the_source(pair: Pair) -> None:
    ids = tokens()
    assert_same(logits(pair.folded, ids), logits(pair.source, ids))


def test_every_token_of_the_vocabulary_equals_the_source(pair: Pair) -> None:
    ids = torch.arange(pair.source.config.vocab_size)[:, None]
    assert_same(logits(pair.folded, ids), logits(pair.source, ids))


def test_left_padded_batch_equals_the_source(pair: Pair) -> None:
    ids, mask = left_padded()
    assert_same(logits(pair.folded, ids, mask), logits(pair.source, ids, mask))


def test_cached_steps_equal_the_source(pair: Pair) -> None:
    ids = tokens(1)
    mask = torch.ones_like(ids)
    assert_same(cached_logits(pair.folded, ids, mask), cached_logits(pair.source, ids, mask))


def test_cached_steps_of_a_left_padded_batch_equal_the_source(pair: Pair) -> None:
    ids, mask = left_padded()
    assert_same(cached_logits(pair.folded, ids, mask), cached_logits(pair.source, ids, mask))


def test_folded_modules_hold_no_weights(pair: Pair) -> None:
    fold = pair.folded.config.prefold
    folded = [entry["module"] for part in ("columns", "dropped", "merged") for entry in fold[part]]
    assert folded
    assert not [name for name in folded if list(pair.folded.get_submodule(name).parameters())]
    before, after = (sum(p.numel() for p in model.parameters()) for model in (pair.source, pair.folded))
    table = fold["table"]["rows"] * fold["table"]["row_width"]
    assert after - table < before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", PARALLEL)
def test_merged_residual_rounds_no_worse_than_the_source(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The order of two additions changes: neither order is nearer to exact arithmetic."""
    pair = make_pair(tmp_path, model_type, dtype, merge_residual=True)
    ids = tokens(8, 24)
    truth = exact_logits(pair.source, ids)
    source, folded = (rounding_error(model, truth, ids) for model in (pair.source, pair.folded))
    assert 0 < folded <= 1.1 * source


@pytest.mark.parametrize("model_type", PARALLEL)
def test_merged_residual_narrows_the_row_by_one_ffn_output(model_type: str, tmp_path: Path) -> None:
    wide, narrow = (
        make_pair(tmp_path / str(merge), model_type, merge_residual=merge).folded.config for merge in (False, True)
    )
    assert wide.prefold["table"]["row_width"] - narrow.prefold["table"]["row_width"] == narrow.hidden_size
    assert narrow.prefold["merged"]
