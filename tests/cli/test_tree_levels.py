"""Trees of levels, with one root or several."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefold.tree import count_trees, levels, open_trees
from tests.tree.growing import LLAMA3_8B

_PUBLISHED = Path(__file__).parents[2].parent / "shared" / "reference" / "fasttree_trees.csv"


@pytest.mark.skipif(not _PUBLISHED.exists(), reason="the published trees are not here")
def test_fasttree_comes_out_to_the_digit(prefold: Callable[..., Any]) -> None:
    rows = list(csv.DictReader(_PUBLISHED.open(encoding="utf-8")))
    assert len(rows) == 15
    for row in rows:
        nodes, tokens = (row[name].replace(",", "/") for name in ("nodes_per_level", "tokens_per_level"))
        found = json.loads(prefold("tree", "count", f"levels:nodes={nodes},tokens={tokens}", "--json").out)
        assert found["tree_tokens"] == int(row["tree_tokens"])
        assert found["path_tokens"] == int(row["path_tokens"])
        assert f"{found['sharing_factor']:.4f}" == row["sharing_factor"]
        assert (found["steps"], found["generated_tokens"]) == (1, int(row["leaves"]))


def test_the_fourth_level_has_512_leaves() -> None:
    (tree,) = open_trees("levels:nodes=1/4/16/512,tokens=1024/256/128/32").trees
    counted = count_trees([tree], LLAMA3_8B)
    assert counted.totals["tree_tokens"] == 20480
    assert counted.totals["path_tokens"] == 737280
    assert counted.sharing_factor == 36.0


def test_a_child_continues_its_share_of_the_level_above() -> None:
    tree = levels([3, 5, 2], [1, 1, 1])
    assert tree.parent.tolist() == [-1, 0, 0, 0, 1, 1, 2, 2, 3, 4, 6]
    assert np.flatnonzero(tree.end).tolist() == [5, 7, 8, 9, 10]  # what nothing continues is a leaf


def test_several_roots_are_several_trees() -> None:
    one, three = (count_trees([levels([roots, 8 * roots], [100, 7])], LLAMA3_8B) for roots in (1, 3))
    assert three.totals["branches"] == 24
    for name in ("branches", "tree_tokens", "path_tokens", "tiled_tokens", "node_pairs", "chunk_pairs", "splits"):
        assert three.totals[name] == 3 * one.totals[name]
    assert three.sharing_factor == one.sharing_factor
    assert three.generated_tokens == 24
