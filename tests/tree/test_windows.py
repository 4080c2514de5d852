"""Layers with a sliding window read the last tokens of each path, a shared one once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.tree import Attention, count_rows, count_trees, few_shot, replay
from prefold.tree.count.windows import within_window
from tests.tree.growing import trees

WHOLE = Attention(layers=8, heads=4, kv_heads=2, head_dim=16)


def naive(rows, window: int) -> tuple[list[int], list[int]]:
    """Return tokens and branches of each row, token by token along each path."""
    seen = [set() for _ in rows.tokens]
    branches = [0] * len(seen)
    for leaf in np.flatnonzero(rows.paths):
        row, left = leaf, window
        while row >= 0 and left > 0:
            part = min(left, rows.tokens[row])
            seen[row] |= set(range(rows.tokens[row] - part, rows.tokens[row]))
            branches[row] += bool(part)
            row, left = rows.above[row], left - part
    return [len(each) for each in seen], branches


@given(tree=trees(), window=st.integers(1, 60))
def test_each_path_sees_its_last_tokens(tree, window: int):
    for rows in replay(tree, joins=False):
        found = within_window(rows, window)
        assert (found.tokens.tolist(), found.branches.tolist()) == naive(rows, window)


@given(tree=trees())
def test_a_window_of_all_tokens_changes_nothing(tree):
    windows = count_rows(within_window(rows, 1 << 40) for rows in replay(tree, joins=False))
    assert windows.totals() == count_rows(replay(tree)).totals()


def test_the_prompt_leaves_the_window_as_branches_grow():
    tree = few_shot(100, 4, 50)
    counts = count_rows(within_window(rows, 60) for rows in replay(tree, joins=False))
    grown = np.arange(1, len(counts.tree_tokens) + 1)
    assert counts.path_tokens.tolist() == [4 * 60] * len(grown)
    assert (np.diff(counts.tree_tokens) == 3).all()  # four more tokens of branches, and one less of the prompt


@pytest.mark.parametrize("sliding", [0, 5, 8])
def test_bytes_are_those_of_both_kinds_of_layers(sliding: int):
    tree = few_shot(300, 4, 20)
    mixed = count_trees([tree], replace(WHOLE, sliding_layers=sliding, sliding_window=50)).reads["flatten"]
    whole = count_trees([tree], WHOLE).reads["flatten"]
    windows = count_trees([tree], replace(WHOLE, sliding_layers=8, sliding_window=50)).reads["flatten"]
    assert mixed.kv * 8 == whole.kv * (8 - sliding) + windows.kv * sliding
    assert windows.kv < whole.kv / 3
