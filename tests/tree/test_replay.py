"""The replay, and what every scheme reads of it, against a loop over tokens and queries."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefold.tree import (
    Counts,
    Tree,
    beam,
    count_rows,
    few_shot,
    make_tree,
    n_best,
    read_trees,
    replay,
    speculative,
)
from prefold.tree.count import timeline
from tests.tree.brute import brute_force
from tests.tree.growing import DATA, trees

COLUMNS = [each.name for each in fields(Counts)]
CATERPILLAR = make_tree("one", [-1, 0, 0, 1, 1], [5, 2, 4, 3, 1], [-4, 1, 1, 3, 3], [0, 2, 4, 5, 3])


def listed(counts: Counts) -> dict[str, list[int]]:
    return {name: getattr(counts, name).tolist() for name in COLUMNS}


@settings(max_examples=300, deadline=None)
@given(trees(), st.none() | st.integers(1, 30), st.sampled_from([1, 3, 4, 128]), st.sampled_from([1, 2, 3, 32]))
def test_it_equals_a_loop_over_tokens_and_queries(tree: Tree, cap, block, tile):
    expected = brute_force(tree, cap, block, tile) or {name: [] for name in COLUMNS}
    assert listed(count_rows(replay(tree, cap, block=block), tile=tile)) == expected


@pytest.mark.parametrize(
    "tree",
    [few_shot(300, 40, 5), n_best(130, 36, 9), beam(200, 34, 12, every=2, seed=3), beam(7, 3, 40)],
    ids=lambda tree: tree.name,
)
def test_many_branches_equal_the_loop_with_the_papers_blocks_and_tiles(tree: Tree):
    assert listed(count_rows(replay(tree))) == brute_force(tree)


def test_a_recorded_tree_equals_the_loop():
    tree = read_trees(DATA / "set128ToT.json", limit=1).trees[0]
    assert listed(count_rows(replay(tree, 60))) == brute_force(tree, 60)


def test_written_out_in_pieces_it_is_the_same(monkeypatch):
    whole = listed(count_rows(replay(CATERPILLAR, block=3), tile=2))
    monkeypatch.setattr(timeline, "_ROWS", 4)
    monkeypatch.setattr(timeline, "_CELLS", 7)
    parts = list(replay(CATERPILLAR, block=3))
    assert len(parts) == 5
    assert listed(count_rows(parts, tile=2)) == whole


@settings(max_examples=300, deadline=None)
@given(trees(segments=30, most=6), st.none() | st.integers(1, 30), st.sampled_from([1, 3, 4]))
def test_chains_as_one_segment_equal_a_loop_over_all_of_them(tree: Tree, cap, block):
    expected = brute_force(tree, cap, block, 2) or {name: [] for name in COLUMNS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "_CELLS", 1)
        assert listed(count_rows(replay(tree, cap, block=block), tile=2)) == expected


def chain(segments: int) -> Tree:
    """Return segments of one token, each of which continues the one before."""
    at = list(range(segments))
    return make_tree("chain", [each - 1 for each in at], [1] * segments, at, at)


def test_a_chain_of_many_segments_is_as_much_work_as_it_is_long():
    work = {length: sum(len(rows.tokens) for rows in replay(chain(length))) for length in (10_000, 100_000)}
    assert work[100_000] < 12 * work[10_000]
    counts = count_rows(replay(chain(100_000)))
    assert counts.tree_tokens.tolist() == counts.node_pairs.tolist() == list(range(2, 100_001))


def test_a_long_prompt_is_no_more_work_than_a_short_one():
    long, short = (count_rows(replay(few_shot(prompt, 40, 30))) for prompt in (1 << 29, 1 << 7))
    assert (long.block_tokens - short.block_tokens == 2 * ((1 << 29) - (1 << 7))).all()


def test_a_tree_by_hand():
    counts = count_rows(replay(CATERPILLAR, block=4), tile=1)
    assert counts.branches.tolist() == [2, 2, 3, 2, 1]
    # At step 2 both children hold 2 tokens; at step 3 the first has branched, and stays for its own children.
    assert counts.tree_tokens.tolist() == [7, 9, 12, 13, 10]
    assert counts.path_tokens.tolist() == [12, 14, 24, 18, 10]
    # 7 tokens in blocks of 4 and 3: both branches read the prompt's first block, and both the second.
    assert counts.block_pairs[0] == 4
    assert counts.block_tokens[0] == 14


def test_a_segment_without_tokens_is_never_there():
    tree = make_tree("one", [-1, 0, 0, 1], [3, 0, 2, 2], [-2, 1, 1, 1], [0, 0, 2, 2])
    counts = count_rows(replay(tree))
    assert counts.branches.tolist() == [2, 2]
    assert counts.node_pairs.tolist() == [4, 4]


def test_a_cap_ends_the_steps_one_before_it():
    assert len(count_rows(replay(few_shot(10, 2, 400), 400)).branches) == 399
    assert len(count_rows(replay(few_shot(10, 2, 400), 1000)).branches) == 400
    assert len(count_rows(replay(few_shot(10, 2, 400), 1)).branches) == 0


def test_a_root_alone_decodes_nothing():
    assert len(count_rows(replay(make_tree("one", [-1], [4], [-3], [0]))).branches) == 0


def test_the_root_of_a_speculative_tree_grows_after_each_step():
    counts = count_rows(replay(speculative([2, 3, 1, 4], size=5, prompt=10, cap=10)))
    assert counts.tree_tokens.tolist() == [15, 18, 19, 23]
    assert counts.path_tokens.tolist() == [55, 70, 75, 95]
    assert counts.branches.tolist() == [5] * 4


@settings(max_examples=100, deadline=None)
@given(trees(least=1))
def test_every_read_of_the_tree_has_a_branch(tree: Tree):
    for rows in replay(tree):
        assert (rows.branches >= 1).all()
        assert (rows.tokens >= 1).all()
        assert np.array_equal(rows.branches[rows.starts], rows.live)
