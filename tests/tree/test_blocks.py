"""A flattened tree in blocks: every query is given the tokens on its path, each once, and blocks are as DeFT's."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefold.tree import count_rows, few_shot, replay
from prefold.tree.cache.blocks import Blocks, SlotRange, make_blocks
from prefold.tree.count.segments import depth_first
from tests.tree.flattened import Case, flattened
from tests.tree.flattened import few_shot as branches_of
from tests.tree.growing import trees

_SIZES = st.sampled_from([1, 2, 3, 16, 64, 128, 1000])
_TILES = st.sampled_from([1, 2, 5, 32, 64])


def _pool_of(blocks: Blocks, item: int) -> int:
    [name] = [pool.name for pool in blocks.pools if pool.begin <= item < pool.end]
    return name


def _seen(blocks: Blocks) -> list[tuple[int, int, int, int]]:
    """Return every (query, pool, slot, position) that the masks say is seen, one by one."""
    found = []
    for item, (begin, end, mask, pair, count) in enumerate(blocks.items.tolist()):
        queries = blocks.queries[pair : pair + count].tolist()
        masks = blocks.masks[mask : mask + end - begin].numpy().view(np.uint64)
        for token, bits in zip(range(begin, end), masks.tolist(), strict=True):
            assert bits >> count == 0
            at = (_pool_of(blocks, item), int(blocks.slots[token]), int(blocks.positions[token]))
            found += [(query, *at) for bit, query in enumerate(queries) if bits >> bit & 1]
    return found


def _paths(case: Case) -> list[tuple[int, int, int, int]]:
    return [
        (query, each.pool, each.slot + at, each.position + at)
        for each in case.stretches
        for query in range(each.low, each.high)
        for at in range(each.tokens)
    ]


@given(case=flattened(pools=2), size=_SIZES, tile=_TILES)
@example(case=branches_of(70, 130, 3), size=128, tile=64)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_every_query_sees_its_path_once(case: Case, size: int, tile: int) -> None:
    blocks = make_blocks(case.stretches, case.queries, size=size, tile=tile)
    assert sorted(_seen(blocks)) == sorted(_paths(case))
    items = blocks.items.numpy()
    assert blocks.read == (items[:, 1] - items[:, 0]).sum() == len(blocks.masks)
    assert blocks.most == items[:, 4].max(initial=0) <= tile
    assert (items[:, 1] - items[:, 0] <= size).all()


@given(case=flattened(pools=2), size=_SIZES, tile=_TILES)
@settings(max_examples=40, derandomize=True, deadline=None)
def test_every_pair_is_merged_once_for_its_query_in_the_order_of_blocks(case: Case, size: int, tile: int) -> None:
    blocks = make_blocks(case.stretches, case.queries, size=size, tile=tile)
    assert blocks.items[:, 4].sum() == len(blocks.queries)
    edges = blocks.offsets.tolist()
    for query, (begin, end) in enumerate(pairwise(edges)):
        own = blocks.order[begin:end]
        assert own.tolist() == (blocks.queries == query).nonzero()[:, 0].tolist()
    assert edges[-1] == len(blocks.queries)


@given(tree=trees(most=90), step=st.integers(0, 200))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_blocks_have_the_tokens_and_the_pairs_that_are_counted_for_flatten(tree, step: int) -> None:
    counts = count_rows(replay(tree))
    if not tree.steps():
        return
    step = step % tree.steps() + 1
    stretches, queries = _at(tree, step)
    blocks = make_blocks(stretches, queries)
    assert len(blocks.slots) == counts.tree_tokens[step - 1]
    assert len(blocks.queries) == counts.block_pairs[step - 1]
    assert blocks.read <= counts.block_tokens[step - 1]


def _at(tree, step: int) -> tuple[list[SlotRange], int]:
    """Return the segments that are resident at a step, and the queries that are decoded."""
    order, sizes = depth_first(tree)
    decoded = [tree.birth[each] <= step <= tree.end[each] for each in order]
    before = np.concatenate([[0], np.cumsum(decoded)])
    stretches, slot = [], 0
    for index, each in enumerate(order):
        below = order[index : index + sizes[index]]
        resident = tree.birth[each] <= step <= tree.end[below].max()
        held = min(step, tree.end[each]) - tree.birth[each] + 1 if resident else 0
        held = tree.prompt if each == tree.root else held
        low, high = before[index], before[index + sizes[index]]
        stretches.append(SlotRange(slot, int(held), int(low), int(high)))
        slot += int(held)
    return stretches, int(before[-1])


def test_blocks_of_a_few_shot_batch_read_what_is_counted() -> None:
    tree = few_shot(prompt=1000, branches=40, steps=20)
    stretches, queries = _at(tree, 20)
    blocks = make_blocks(stretches, queries)
    assert blocks.read == 1000 * 2 + 40 * 20
    assert count_rows(replay(tree)).block_tokens[19] == blocks.read + 24  # the rest of the block where the prompt ends
    assert make_blocks(stretches, queries, tile=64).read == 1000 + 40 * 20


def test_a_tile_reads_of_a_block_only_what_its_queries_see() -> None:
    case = branches_of(0, 8, 10)
    assert make_blocks(case.stretches, 8, tile=2).read == 80
    assert make_blocks(case.stretches, 8, tile=64).read == 80


@pytest.mark.parametrize("branches", [1, 2, 3, 4])
def test_tensors_begin_where_triton_need_not_compile_anew(branches: int) -> None:
    blocks = make_blocks(branches_of(5, branches, 3).stretches, branches)
    tensors = [each for each in vars(blocks).values() if isinstance(each, torch.Tensor)]
    assert len(tensors) == 7
    assert all(each.is_contiguous() and each.storage_offset() % 2 == 0 for each in tensors)


def test_what_nobody_sees_is_not_there() -> None:
    case = branches_of(5, 2, 3)
    unseen = (*case.stretches, SlotRange(90, 7, 1, 1), SlotRange(100, 0, 0, 2))
    blocks = make_blocks(unseen, 2)
    assert blocks.slots.tolist() == make_blocks(case.stretches, 2).slots.tolist()
    assert max(pool.stop for pool in blocks.pools) == 13


@pytest.mark.parametrize("queries", [0, 3])
def test_a_tree_without_tokens_has_no_blocks(queries: int) -> None:
    blocks = make_blocks([], queries)
    assert (len(blocks.items), blocks.pools, blocks.read) == (0, (), 0)
    assert blocks.offsets.tolist() == [0] * (queries + 1)


@pytest.mark.parametrize(
    "wrong", [{"slot": -1}, {"tokens": -2}, {"low": -1}, {"high": 9}, {"low": 3, "high": 2}], ids=str
)
def test_a_stretch_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    stretch = SlotRange(0, 4, 0, 2)._replace(**wrong)
    with pytest.raises(ValueError, match="SlotRange"):
        make_blocks([stretch], 3)


@pytest.mark.parametrize(("size", "tile"), [(0, 32), (128, 0), (128, 65)])
def test_sizes_out_of_range_are_refused(size: int, tile: int) -> None:
    case = replace(branches_of(3, 1, 1), size=size)
    with pytest.raises(ValueError, match="at least 1"):
        make_blocks(case.stretches, 1, size=size, tile=tile)
