"""What is read on the way through a recorded tree is what the formulas say, to the byte."""

from pathlib import Path

import pytest
import torch
from transformers.masking_utils import causal_mask_function

from benchmarks.course import course
from prefold.tree import Attention, Tree, TreeCache, beam, count_trees, few_shot, n_best, open_trees
from prefold.tree.cache.attention import tree_attention
from prefold.tree.cache.masks import TreeMask

_DATA = Path(__file__).parent / "data"
_HEADS, _KV_HEADS, _WIDTH, _LAYERS = 4, 2, 8, 2


def _set_template() -> Tree:
    return open_trees(str(_DATA / "set128ToT.json"), limit=1).trees[0]


def _step(cache: TreeCache, rows: int, new: int) -> None:
    mask = cache.attention_mask(new).bool() if cache.live.rows else None
    for layer in range(_LAYERS):
        states = torch.randn(rows, _KV_HEADS, new, _WIDTH)
        keys, values = cache.update(states, states, layer)
        out, _ = tree_attention(
            torch.nn.Module(),
            torch.randn(rows, _HEADS, new, _WIDTH),
            keys,
            values,
            TreeMask(mask_function=causal_mask_function, attention_mask=mask),
        )
        assert out.isfinite().all()


@pytest.mark.parametrize(
    "tree",
    [
        few_shot(50, 3, 10),
        few_shot(60, 40, 3),
        n_best(20, 4, 12, 5),
        beam(20, 4, 12),
        beam(300, 8, 40, 3),
        _set_template(),
    ],
    ids=lambda tree: tree.name,
)
def test_reads_are_the_physical_column(tree: Tree) -> None:
    cache = TreeCache()
    _step(cache, 1, tree.prompt)
    for rows in course(tree):
        cache.reorder_cache(rows)
        _step(cache, len(rows), 1)
    attention = Attention(_LAYERS, _HEADS, _KV_HEADS, _WIDTH, value_bytes=4)
    assert sum(cache.reads[1:]) == count_trees([tree], attention, schemes=["flatten"]).reads["flatten"].physical
