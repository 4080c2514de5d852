"""Generators: the trees that they make, and how they are written on a command line."""

import subprocess
import sys
from random import Random

import pytest

from prefold.common.errors import UsageError
from prefold.tree import Tree, beam, few_shot, make_tree, n_best, open_trees, speculative
from prefold.tree.count.generators import refill
from tests.tree.growing import DATA


def checked(tree: Tree) -> Tree:
    """Pass a tree through the checks that files go through."""
    return make_tree(tree.name, *(each.tolist() for each in (tree.parent, tree.tokens, tree.birth, tree.end)))


def test_few_shot_branches_are_alike():
    tree = checked(few_shot(4000, 3, 7))
    assert (tree.prompt, tree.parent.tolist(), tree.end.tolist()) == (4000, [-1, 0, 0, 0], [0, 7, 7, 7])


def test_samples_end_one_after_another():
    assert checked(n_best(10, 5, 9)).end.tolist() == [0, 9, 8, 7, 6, 5]
    assert n_best(10, 3, 9, shortest=1).end.tolist() == [0, 9, 5, 1]
    assert n_best(10, 1, 9).end.tolist() == [0, 9]


@pytest.mark.parametrize("every", [1, 3])
def test_a_beam_search_keeps_its_width_and_forgets_what_nobody_continues(every: int):
    tree = checked(beam(20, 4, 30, every=every, seed=5))
    live = [int(((tree.birth <= step) & (step <= tree.end)).sum()) for step in range(1, 31)]
    assert set(live) == {4}
    remaining_owners = {int(each): tree.parent.tolist().count(each) for each in tree.parent[1:]}
    assert all(count > 1 for count in remaining_owners.values())
    assert all(
        (tree.end[each] == 30) or each in remaining_owners or tree.end[each] % every == 0
        for each in range(1, len(live))
    )


def test_a_seed_makes_one_beam_search():
    one, again, other = beam(20, 4, 30, seed=5), beam(20, 4, 30, seed=5), beam(20, 4, 30, seed=6)
    assert one.end.tolist() == again.end.tolist() != other.end.tolist()


def test_accepted_lengths_are_cut_then_drawn_then_clipped():
    random = Random(0)
    drawn = [random.randint(1, 3) for _ in range(9)]
    assert refill([3, 2, 1], 5) == [3, 2]
    assert refill([3, 2, 1], 4)[:1] == [3]
    assert sum(refill([3, 2, 1], 4)) == 4
    assert refill([3, 2, 1], 20)[:8] == [3, 2, 1, *drawn[:5]]
    assert sum(refill([3, 2, 1], 20)) == 20


def test_the_prefill_takes_the_first_accepted_length():
    tree = speculative([9, 2, 3], size=4, prompt=10, cap=14)
    assert tree.accepted == (2, 3)
    assert tree.steps() == 3


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("few-shot:prompt=40,branches=2,steps=3", few_shot(40, 2, 3)),
        ("n-best:steps=6,prompt=40,branches=2,shortest=1", n_best(40, 2, 6, 1)),
        ("beam:prompt=40,beams=2,steps=6,every=2,seed=1", beam(40, 2, 6, 2, 1)),
    ],
)
def test_a_generator_is_written_as_text(source: str, made: Tree):
    (tree,) = open_trees(source).trees
    assert tree.name == made.name
    assert tree.end.tolist() == made.end.tolist()


def test_speculative_decoding_reads_the_accepted_lengths_of_a_file():
    source = f"speculative:file={DATA / 'speculative.json'},size=32,prompt=1000,cap=1000"
    assert open_trees(source).trees[0].steps() == 239
    assert open_trees(f"{source},dataset=dialogue,index=79").trees[0].steps() != 239


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("few-shot", "without prompt, branches, steps; as few-shot:prompt=...,branches=...,steps=..."),
        ("few-shot:prompt=4,branches=2", "without steps"),
        ("few-shot:prompt=4,branches=2,steps=x", "steps=x is not a whole number"),
        ("few-shot:prompt=4,branches=2,steps=", "steps= is not a whole number"),
        ("few-shot:prompt=4,branches=0,steps=2", "branches is 0"),
        ("few-shot:prompt=4,branches=-1,steps=2", "branches is -1"),
        ("few-shot:prompt=4,prompt=5,branches=1,steps=2", "prompt is given twice"),
        ("few-shot:promt=4", "no setting 'promt'; there are prompt, branches, steps"),
        ("fewshot:prompt=4", "fewshot: no such file or generator; the nearest: few-shot"),
        ("beams", "beams: no such file or generator; the nearest: beam"),
        ("n-best:prompt=4,branches=2,steps=3,shortest=4", "shortest is 4, above steps, 3"),
        ("nowhere.json", "nowhere.json: No such file"),
        (f"speculative:file={DATA / 'speculative.json'},size=32,prompt=10,cap=0", "cap is 0"),
        (f"speculative:file={DATA / 'speculative.json'},size=3,prompt=9,cap=9,dataset=APS", "the nearest: APPS"),
        (f"speculative:file={DATA / 'speculative.json'},size=3,prompt=9,cap=9,index=1", "APPS has no list 1"),
        (f"speculative:file={DATA / 'set128ToT.json'},size=3,prompt=9,cap=9", "no accept_lengths"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(source: str, said: str):
    with pytest.raises(UsageError) as refused:
        open_trees(source)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_nothing_accepted_is_no_workload():
    for accepted in ([], [0, 0], [-1, 4]):
        with pytest.raises(UsageError, match="accepted lengths"):
            speculative(accepted, 4, 10, 100)


def test_counting_needs_neither_torch_nor_transformers():
    look = "import sys, prefold.tree; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
