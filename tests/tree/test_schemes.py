"""The bytes of each scheme: the paper's formulas, and what must hold between schemes and columns."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings

from prefold.tree import SCHEMES, Attention, Tree, UnknownName, count_trees, few_shot, make_tree
from tests.tree.growing import LLAMA3_8B, trees

WIDE = few_shot(1000, 70, 6)
# H, d, KV heads and layers all differ, so that none can stand in for another.
ODD = Attention(layers=3, heads=12, kv_heads=4, head_dim=5)


@settings(max_examples=200, deadline=None)
@given(trees(least=1))
def test_a_tree_is_never_read_more_than_its_paths(tree: Tree):
    reads = count_trees([tree], LLAMA3_8B).reads
    for name in ("medusa", "node", "node-chunk", "flatten"):
        assert reads[name].published <= reads["sequence-wise"].published
        assert reads[name].physical <= reads["sequence-wise"].physical


@settings(max_examples=200, deadline=None)
@given(trees(least=1))
def test_no_column_is_below_what_it_includes(tree: Tree):
    for reads in count_trees([tree, WIDE], LLAMA3_8B).reads.values():
        assert reads.full >= reads.kv >= reads.physical
        assert reads.published == 4 * reads.physical


@pytest.mark.parametrize("steps", [1, 7, 300])
def test_one_branch_is_read_alike_by_all(steps: int):
    counted = count_trees([few_shot(100, 1, steps)], LLAMA3_8B)
    assert len({(each.published, each.physical, each.kv) for each in counted.reads.values()}) == 1
    assert counted.sharing_factor == 1


def test_branches_that_share_nothing_gain_nothing():
    counted = count_trees([make_tree("no prompt", [-1, 0, 0], [0, 5, 5], [1, 1, 1], [0, 5, 5])], LLAMA3_8B)
    assert counted.sharing_factor == 1
    assert len({each.published for each in counted.reads.values()}) == 1


def test_the_formulas_of_the_paper_by_hand():
    """Three branches of a prompt of 130 for one step: a tree of 133 tokens, two blocks, paths of 131."""
    reads = count_trees([few_shot(130, 3, 1)], ODD).reads
    layers, heads, kv_heads, d = 3, 12, 4, 5
    kv, q = layers * 4 * d, layers * 2 * heads * d
    partial = layers * 8 * heads * (d + 1)
    pairs = {"sequence-wise": 3 * 2, "medusa": 3, "node": 3 + 3, "node-chunk": 3 * 2 + 3, "flatten": 3 + 3}
    tokens = {"sequence-wise": 3 * 131}
    masks = {"medusa": layers * 3 * 133 * (20 * heads + 2), "flatten": layers * 8 * 133}
    for name, each in reads.items():
        read = tokens.get(name, 133)
        assert each.published == kv * heads * read
        assert each.physical == kv * kv_heads * read
        expected = each.physical + (q + partial) * pairs[name] + q * 3 + masks.get(name, 0)
        assert each.full == expected, name
    assert reads["medusa"].published_partials == layers * 3 * 133 * (16 * heads + 2)
    assert reads["flatten"].published_partials == layers * 8 * 133
    assert reads["node"].published_partials == 0


def test_above_32_queries_tiles_read_again():
    reads = count_trees([few_shot(1000, 70, 1)], LLAMA3_8B).reads
    token = 131_072
    assert reads["node"].physical == (3 * 1000 + 70) * token
    assert reads["flatten"].physical == 1070 * token
    # 8 whole blocks and one of 46 tokens: of the prompt's last 104 tokens, 24 of its 70 branches lie in the same block.
    assert reads["flatten"].kv == 3 * 1024 * token + 2 * 46 * token


def test_layers_and_the_size_of_a_value_scale_what_they_should():
    half, whole = count_trees([WIDE], LLAMA3_8B), count_trees([WIDE], replace(LLAMA3_8B, layers=64, value_bytes=4))
    for name, reads in half.reads.items():
        doubled = whole.reads[name]
        assert doubled.published == 4 * reads.published
        assert doubled.partials == 2 * reads.partials
        assert doubled.queries == 4 * reads.queries


def test_figures_of_several_trees_are_means():
    one, two = few_shot(100, 2, 3), few_shot(50, 4, 8)
    alone = [count_trees([each], ODD) for each in (one, two)]
    both = count_trees([one, two], ODD)
    assert both.totals["steps"] == Fraction(3 + 8, 2)
    assert both.generated_tokens == Fraction(6 + 32, 2)
    for name in SCHEMES:
        assert both.reads[name].full == sum(each.reads[name].full for each in alone) / 2
    paths, tokens = (sum(each.totals[name] for each in alone) for name in ("path_tokens", "tree_tokens"))
    assert both.sharing_factor == float(paths / tokens)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("Flatten", "flatten"),
        ("DeFT-Node-Chunk", "node-chunk"),
        ("node_chunk", "node-chunk"),
        ("radix", "sequence-wise"),
    ],
)
def test_schemes_have_other_names(name: str, scheme: str):
    assert list(count_trees([WIDE], ODD, schemes=[name]).reads) == [scheme]


def test_an_unknown_scheme_is_told_the_nearest():
    with pytest.raises(UnknownName, match="flaten: no such scheme; the nearest: flatten"):
        count_trees([WIDE], ODD, schemes=["flaten"])
