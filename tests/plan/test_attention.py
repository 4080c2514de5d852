"""Whose keys and values a chip holds (Pope et al. 2022, section 3.3)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.errors import UnknownName, UsageError
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.attention import (
    Ways,
    kv_bytes,
    kv_width_per_chip,
    moves,
    require_sequences,
    score_flops,
    shardings,
    ways,
)
from prefold.plan.cost.layouts import LAYOUTS
from prefold.plan.cost.workload import Workload
from prefold.plan.errors import Infeasible
from prefold.plan.model.shape import find_shape

CUBE = Mesh(4, 4, 4)
PALM = find_shape("palm-540b")
LLAMA = find_shape("llama3-8b")


def test_a_multiquery_cache_is_120832_bytes_per_token():
    assert kv_bytes(PALM, Workload("decode", 1, 1), Ways(1, 1)) == 120832


def test_sharded_over_heads_every_chip_has_the_single_one_of_multiquery():
    step = Workload("decode", 128, 2048)
    assert kv_bytes(PALM, step, ways("head", "2d-ws", CUBE)) == kv_bytes(PALM, step, Ways(1, 1))


def test_sharded_over_batch_a_chip_has_its_sequences_alone():
    step = Workload("decode", 128, 2048)
    assert kv_bytes(PALM, step, ways("batch", "2d-ws", CUBE)) == 2 * 2048 * 120832


def test_a_part_of_a_sequence_is_a_whole_one():
    assert kv_bytes(PALM, Workload("decode", 5, 10), ways("batch", "2d-ws", CUBE)) == 10 * 120832


@pytest.mark.parametrize(("heads", "expected"), [(1, 8), (4, 2), (8, 1), (16, 1), (3, 3)])
def test_a_head_is_not_split(heads, expected):
    assert kv_width_per_chip(LLAMA, heads) == expected * 2 * 128


def test_compressed_keys_and_values_are_shared_by_all_heads():
    assert {kv_width_per_chip(find_shape("deepseek-v3"), heads) for heads in (1, 8, 128)} == {512 + 64}


@pytest.mark.parametrize(
    ("layout", "expected"),
    [("1d-ws", Ways(1, 64)), ("2d-ws", Ways(1, 64)), ("wg-x", Ways(4, 16)), ("wg-xy", Ways(16, 4))],
)
def test_gathering_weights_splits_the_batch_already(layout, expected):
    assert ways("head", layout, CUBE) == expected
    assert ways("batch", layout, CUBE) == Ways(64, 1)


def test_where_all_weights_are_gathered_attention_is_sharded_over_batch():
    assert shardings("wg-xyz", CUBE) == ["batch"]
    assert shardings("2d-ws", CUBE) == ["head", "batch"]
    assert shardings("1d-ws", Mesh(1, 1, 1)) == ["head"]


def test_batch_sharding_moves_queries_keys_and_values_there_and_their_sum_back():
    there, back = moves(PALM, "batch", "2d-ws", CUBE, 64)
    assert (there.kind, there.over, there.elements) == ("all-to-all", 64, 64 * 256 + 2 * 256)
    assert (back.kind, back.over, back.elements) == ("all-to-all", 64, 64 * 256)


@pytest.mark.parametrize(("sharding", "layout"), [("head", "2d-ws"), ("batch", "wg-xyz")])
def test_nothing_moves_where_nothing_has_to(sharding, layout):
    assert moves(PALM, sharding, layout, CUBE, 64) == []


def test_fewer_sequences_than_the_smallest_axis_gain_nothing():
    with pytest.raises(Infeasible) as refused:
        require_sequences("batch", CUBE, 3)
    needed = "a sequence for each of the 4 chips along the shortest axis of the mesh 4x4x4"
    assert str(refused.value) == f"batch-sharded attention needs {needed}: batch 3 is too small; batch 4 would do"
    require_sequences("batch", CUBE, 4)
    require_sequences("head", CUBE, 1)


def test_an_unknown_sharding_names_those_that_there_are():
    with pytest.raises(UnknownName, match="batch"):
        ways("bach", "2d-ws", CUBE)


def test_branches_share_their_prefix_once():
    apart = Workload("decode", 8, 1000, branches=4, shared_prefix=900)
    together = replace(apart, shares_reads=True)
    assert kv_bytes(LLAMA, apart, Ways(1, 1)) == 8 * 1000 * 131072
    assert kv_bytes(LLAMA, together, Ways(1, 1)) == (2 * 900 + 8 * 100) * 131072


def test_a_prefill_works_on_a_shared_prefix_once():
    prefill = Workload("prefill", 8, 1000, branches=4, shared_prefix=900)
    assert prefill.tokens == 8000
    assert replace(prefill, shares_reads=True).tokens == 2 * 900 + 8 * 100


def test_a_decode_step_attends_to_the_cache_and_itself():
    step = Workload("decode", 2, 99)
    assert score_flops(LLAMA, step) == 4 * 32 * 128 * 32 * 2 * 100


def test_a_prefill_attends_to_half_of_what_it_reads():
    assert score_flops(LLAMA, Workload("prefill", 1, 99)) == 4 * 32 * 128 * 32 * 99 * 50


def test_compressed_attention_decodes_without_expanding():
    shape = find_shape("deepseek-v3")
    assert score_flops(shape, Workload("decode", 1, 99)) == 2 * 128 * (2 * 512 + 64) * 61 * 100


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phase": "train"}, "train: no such phase"),
        ({"batch": 0}, "at least one sequence"),
        ({"context": 0}, "at least one token"),
        ({"weights": "int3"}, "int3: no such type"),
        ({"branches": 3}, "batch 8 is not a multiple of 3 branches"),
        ({"branches": 0}, "0 branches"),
        ({"shared_prefix": 200}, "shared prefix 200 is not within the context 100"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        replace(Workload("decode", 8, 100), **changes)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(UsageError) as raised:
        Workload("decode", 0, 0, kv="fp7")
    assert len(str(raised.value).splitlines()) == 3


@given(
    batch=st.integers(1, 4096),
    context=st.integers(1, 1 << 17),
    layout=st.sampled_from(LAYOUTS),
    name=st.sampled_from(["palm-540b", "llama3-70b", "deepseek-v3", "mt-nlg-530b"]),
)
def test_no_chip_holds_more_for_its_sequences_than_one_alone_would(batch, context, layout, name):
    shape, step = find_shape(name), Workload("decode", batch, context)
    alone = kv_bytes(shape, step, Ways(1, 1))
    for sharding in shardings(layout, CUBE):
        assert 0 < kv_bytes(shape, step, ways(sharding, layout, CUBE)) <= alone


WINDOWS = replace(LLAMA, sliding_window=100, sliding_layers=24)


def test_layers_with_a_window_keep_and_read_no_more_than_that():
    of_a_layer = 131072 // 32
    for context, tokens in ((50, 32 * 50), (100, 32 * 100), (1000, 8 * 1000 + 24 * 100)):
        assert kv_bytes(WINDOWS, Workload("decode", 3, context), Ways(1, 1)) == 3 * tokens * of_a_layer


def test_branches_share_as_much_of_a_prefix_as_a_window_shows():
    step = Workload("decode", 4, 1000, branches=4, shared_prefix=950, shares_reads=True)
    tokens = 8 * (950 + 4 * 50) + 24 * (50 + 4 * 50)
    assert kv_bytes(WINDOWS, step, Ways(1, 1)) == tokens * 131072 // 32


def test_scores_of_a_window():
    decode, prefill = Workload("decode", 1, 999), Workload("prefill", 1, 1000)
    per_key = 4 * 32 * 128
    assert score_flops(WINDOWS, decode) == per_key * (8 * 1000 + 24 * 100)
    every = sum(min(position, 100) for position in range(1, 1001))
    assert score_flops(WINDOWS, prefill) == pytest.approx(per_key * (8 * 1000 * 1001 / 2 + 24 * every))


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(0, 32))
def test_a_window_never_reads_more(context: int, window: int, layers: int):
    shape, step = replace(LLAMA, sliding_window=window, sliding_layers=layers), Workload("decode", 2, context)
    few, all_of_it = (kv_bytes(each, step, Ways(1, 1)) for each in (shape, LLAMA))
    assert few <= all_of_it
    assert (few == all_of_it) == (layers == 0 or context <= window)
    assert score_flops(shape, step) <= score_flops(LLAMA, step)
