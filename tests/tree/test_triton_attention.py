"""The Triton kernels, in the interpreter where there is no GPU: equal to attention that is too slow to be wrong."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefold.tree.cache.blocks import SlotRange
from tests.tree import flattened as flat
from tests.tree.flattened import Case, Found, assert_equal, few_shot, naive

pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")

_SHAPES = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (8, 1), (5, 1)])
_WINDOWS = st.none() | st.tuples(st.sampled_from(["sliding", "chunked"]), st.integers(1, 90))
Attend = Callable[[Case], Found]


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with flat.interpreter() as process:
        yield process


@pytest.fixture(scope="module")
def attend(process: ProcessPoolExecutor) -> Attend:
    return lambda case: process.submit(flat.by_triton, case).result()


@given(
    case=flat.flattened(),
    shape=_SHAPES,
    window=_WINDOWS,
    softcap=st.sampled_from([None, None, 0.5, 20.0]),
    spread=st.sampled_from([1.0, 40.0]),
    size=st.sampled_from([16, 48, 128, 500]),
    tile=st.sampled_from([1, 3, 32, 64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=16, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_random_tree_is_attended_to_exactly(attend: Attend, case: Case, shape: tuple[int, int], **how: Any) -> None:
    case = replace(case, heads=shape[0], kv_heads=shape[1], **how)
    assert_equal(attend(case), naive(case))


@given(case=flat.flattened(pools=3), size=st.sampled_from([32, 128]), seed=st.integers(0, 99))
@settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_tree_in_several_pools_is_attended_to_exactly(attend: Attend, case: Case, size: int, seed: int) -> None:
    case = replace(case, size=size, seed=seed)
    assert_equal(attend(case), naive(case))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("head_dim", "width"), [(80, 80), (96, 96), (8, 24), (64, 128)])
def test_heads_of_any_width_and_type(attend: Attend, dtype: str, head_dim: int, width: int) -> None:
    case = few_shot(140, 5, 9, heads=6, kv_heads=2, head_dim=head_dim, width=width, dtype=dtype)
    assert_equal(attend(case), naive(case), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_soft_caps_and_windows_of_half_precision(attend: Attend, dtype: str) -> None:
    case = few_shot(200, 6, 30, softcap=3.0, window=("sliding", 70), dtype=dtype, heads=8, kv_heads=2, head_dim=32)
    assert_equal(attend(replace(case, width=32)), naive(replace(case, width=32)), dtype)


@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 1)])
def test_more_queries_than_a_mask_has_bits(attend: Attend, tile: int, heads: int, kv_heads: int) -> None:
    case = few_shot(60, 100, 1, tile=tile, heads=heads, kv_heads=kv_heads)
    assert_equal(attend(case), naive(case))


def test_all_64_bits_of_a_mask_are_told_apart(attend: Attend) -> None:
    case = few_shot(0, 64, 2, tile=64, heads=1, kv_heads=1)
    assert_equal(attend(case), naive(case))


@pytest.mark.parametrize("lying", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_pools_that_lie_in_any_way(attend: Attend, lying: tuple[int, int, int]) -> None:
    case = few_shot(60, 4, 5, lying=lying)
    assert_equal(attend(case), naive(case))


def test_scores_that_exceed_what_an_exponential_holds(attend: Attend) -> None:
    case = few_shot(300, 3, 40, spread=3000.0, size=64)
    expected = naive(case)
    assert np.abs(expected[1]).max() > 2000
    found = attend(case)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3)  # float32 scores of thousands
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_more_blocks_of_a_path_than_are_merged_at_a_time(attend: Attend, seed: int) -> None:
    case = few_shot(400, 3, 20, spread=4.0, size=8, seed=seed)
    assert_equal(attend(case), naive(case))


def test_a_query_that_sees_nothing_is_given_zeros(attend: Attend) -> None:
    case = Case((SlotRange(0, 10, 1, 2), SlotRange(12, 0, 2, 3)), 4)
    out, total = attend(case)
    assert_equal((out, total), naive(case))
    assert not out[[0, 2, 3]].any()
    assert np.isneginf(total[[0, 2, 3]]).all()


@pytest.mark.parametrize("queries", [0, 2])
def test_an_empty_tree_gives_zeros(attend: Attend, queries: int) -> None:
    out, total = attend(Case((), queries))
    assert out.shape == (queries, 4, 16)
    assert not out.any()
    assert np.isneginf(total).all()


def test_the_same_call_gives_the_same_bits(attend: Attend) -> None:
    case = few_shot(300, 9, 20, size=32)
    for one, other in zip(attend(case), attend(case), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("flip", [(0, 0), (150, 3), (250, 1)])
def test_one_wrong_bit_of_a_mask_shows(attend: Attend, flip: tuple[int, int]) -> None:
    case = few_shot(200, 6, 10)
    with pytest.raises(AssertionError):
        assert_equal(attend(replace(case, flip=flip)), naive(case))


def test_a_slot_behind_the_pool_is_refused(attend: Attend) -> None:
    with pytest.raises(ValueError, match="slots up to 2000"):
        attend(replace(few_shot(20, 2, 3), beyond=SlotRange(1990, 10, 0, 2)))


def test_a_window_without_positions_is_refused(attend: Attend) -> None:
    with pytest.raises(ValueError, match="position of every query"):
        attend(replace(few_shot(20, 2, 3, window=("sliding", 4)), blind=True))


def test_kernels_are_interpreted_in_a_process_of_their_own(process: ProcessPoolExecutor) -> None:
    assert not flat.interprets()
    assert process.submit(flat.interprets).result() is not torch.cuda.is_available()
