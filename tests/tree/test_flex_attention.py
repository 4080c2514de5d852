"""FlexAttention with a tree mask, uncompiled: equal to attention that is too slow to be wrong."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.flex_attention import flex_attention, tree_mask
from prefold.tree.cache.blocks import make_blocks
from prefold.tree.cache.masks import Window
from prefold.tree.cache.partial import Scoring
from tests.tree.flattened import Case, Found, assert_equal, few_shot, flattened, naive

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def by_flex(case: Case) -> Found:
    query, pools = case.tensors()
    blocks = make_blocks(case.stretches, case.queries)
    keys, values = (states.nan_to_num() for states in pools[0])  # uncompiled, it multiplies what nobody sees by zero
    window = {"window": Window(*case.window), "ends": case.ends()} if case.window else {}
    out, total = flex_attention(query, keys, values, blocks, Scoring(case.scale, case.softcap), **window)
    return out.float().numpy(), total.numpy()


@given(
    case=flattened(),
    shape=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    window=st.none() | st.tuples(st.sampled_from(["sliding", "chunked"]), st.integers(1, 90)),
    softcap=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=16, derandomize=True, deadline=None)
def test_a_random_tree_is_attended_to_exactly(case: Case, shape: tuple[int, int], **how: Any) -> None:
    case = replace(case, heads=shape[0], kv_heads=shape[1], **how)
    if case.queries:
        assert_equal(by_flex(case), naive(case))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str) -> None:
    case = few_shot(200, 70, 3, heads=4, kv_heads=1, dtype=dtype)
    assert_equal(by_flex(case), naive(case), dtype)


def test_blocks_of_slots_that_hold_nothing_are_skipped() -> None:
    case = few_shot(1280, 4, 32)
    mask = tree_mask(make_blocks(case.stretches, 4), 1 << 14)
    assert mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum() == 12


def test_several_pools_are_refused() -> None:
    case = few_shot(20, 2, 3)
    apart = [each._replace(pool=index) for index, each in enumerate(case.stretches)]
    with pytest.raises(ValueError, match="3 pools"):
        tree_mask(make_blocks(apart, 2), 100)


def test_a_window_without_positions_is_refused() -> None:
    case = few_shot(20, 2, 3)
    with pytest.raises(ValueError, match="position of every query"):
        tree_mask(make_blocks(case.stretches, 2), 100, Window("sliding", 4))
