"""What folding changes, by formula: the figures of Graef 2024 and what follows from them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.errors import UsageError
from prefold.plan.cost.fold import (
    Fold,
    active_gone,
    break_even_batch,
    columns,
    first_layer_reads,
    reads_gone,
    row_bytes,
    row_width,
    table_bytes,
    weights_gone,
)
from prefold.plan.model.shape import Experts, Shape, find_shape

PYTHIA, MISTRAL = find_shape("pythia-6.9b"), find_shape("mistral-7b")
# The paper's hypothetical one.
MIXTRAL = replace(find_shape("mixtral-8x7b"), parallel=True)
ROUTER = 4096 * 8

SHAPES = st.builds(
    lambda heads, kv, head_dim, inner, vocabulary, gated, parallel, experts: Shape(
        "any", 4, heads * kv * head_dim, inner, heads * kv, kv, head_dim, vocabulary, gated, parallel, experts=experts
    ),
    heads=st.integers(1, 8),
    kv=st.integers(1, 8),
    head_dim=st.integers(1, 128),
    inner=st.integers(1, 1 << 14),
    vocabulary=st.integers(1, 1 << 17),
    gated=st.booleans(),
    parallel=st.booleans(),
    experts=st.none()
    | st.builds(lambda count, width: Experts(count, 1, width), st.integers(1, 64), st.integers(1, 4096)),
)
FOLDS = st.builds(Fold, dtype=st.sampled_from(["fp32", "bf16", "int8"]))


@pytest.mark.parametrize(
    ("shape", "gone", "width"),
    [
        (PYTHIA, 184_549_376, 3 * 4096 + 2 * 4096),
        (MISTRAL, 25_165_824, 2 * (4096 + 1024)),
        (MIXTRAL, 1_434_451_968 + ROUTER, 3 * 4096 + 2 * 1024),
    ],
)
def test_weights_and_rows_are_the_papers(shape, gone, width):
    assert weights_gone(shape) == gone
    assert row_width(shape) == width


def test_reads_of_one_token_are_the_papers():
    assert first_layer_reads(MISTRAL, 1, "bf16") / 2 == 25_169_920
    assert first_layer_reads(MISTRAL, 1, "bf16", Fold()) / 2 == 10_240
    assert first_layer_reads(PYTHIA, 1, "bf16") / 2 == 184_553_472


def test_a_table_has_a_row_for_every_token():
    assert table_bytes(MISTRAL, Fold()) == 32000 * 10240 * 2
    assert table_bytes(MISTRAL, Fold(dtype="int8")) == 32000 * 10240


def test_columns_of_compressed_attention_are_compressed():
    shape = find_shape("deepseek-v3")
    assert [(column.name, column.width) for column in columns(shape)] == [
        ("residual", 7168),
        ("queries", 1536),
        ("keys and values", 512 + 64),
    ]
    assert weights_gone(shape) == 7168 * (1536 + 576)


def test_the_ffn_of_a_parallel_block_is_a_column_and_that_of_a_serial_one_is_not():
    assert [column.name for column in columns(PYTHIA)][-1] == "FFN"
    assert "FFN" not in [column.name for column in columns(MISTRAL)]


def test_of_experts_only_those_that_are_read_are_saved():
    one = MIXTRAL.ffn_weights(14336)
    assert weights_gone(MIXTRAL) - active_gone(MIXTRAL) == 6 * one
    assert weights_gone(MIXTRAL) - reads_gone(MIXTRAL, 1) == pytest.approx(6 * one)
    assert reads_gone(MIXTRAL, 1 << 16) == pytest.approx(weights_gone(MIXTRAL))


@pytest.mark.parametrize(
    ("placement", "dtype", "said"), [("gpu", "bf16", "gpu: no such place"), ("host", "x", "x: no")]
)
def test_a_table_of_no_place_or_type_is_refused(placement, dtype, said):
    with pytest.raises(UsageError, match=said):
        Fold(placement, dtype)


@pytest.mark.parametrize("shape", [PYTHIA, MISTRAL])
def test_the_break_even_batch_is_the_last_that_gains(shape):
    batch = break_even_batch(shape)
    more = row_width(shape) - shape.hidden_size
    assert batch == weights_gone(shape) // more


def test_smaller_weights_bring_the_break_even_batch_down():
    assert (
        break_even_batch(MISTRAL, "int8")
        < break_even_batch(MISTRAL)
        < break_even_batch(MISTRAL, "bf16", Fold(dtype="fp8"))
    )


@given(shape=SHAPES, fold=FOLDS, share=st.floats(0, 1))
def test_folded_reads_never_exceed_source_reads_below_the_break_even_batch(shape, fold, share):
    batch = break_even_batch(shape, "bf16", fold)
    tokens = 1 << 20 if batch is None else round(share * batch)
    assert first_layer_reads(shape, tokens, "bf16", fold) <= first_layer_reads(shape, tokens, "bf16") * (1 + 1e-12)


@given(shape=SHAPES, fold=FOLDS)
def test_above_the_break_even_batch_they_do(shape, fold):
    batch = break_even_batch(shape, "bf16", fold)
    if batch is not None:
        assert first_layer_reads(shape, batch + 1, "bf16", fold) > first_layer_reads(shape, batch + 1, "bf16")


@given(shape=SHAPES, tokens=st.integers(1, 1 << 20))
def test_no_fold_takes_more_than_there_is(shape, tokens):
    assert 0 <= active_gone(shape) <= weights_gone(shape) <= shape.layer_weights
    assert 0 <= reads_gone(shape, tokens) <= weights_gone(shape) * (1 + 1e-12)
    assert row_bytes(shape, Fold()) == 2 * row_width(shape)
