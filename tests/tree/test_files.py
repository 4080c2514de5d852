"""Trees in files: what is read, and what is refused in one line."""

import json
from pathlib import Path

import pytest

from prefold.common.errors import UsageError
from prefold.tree import read_trees
from tests.tree.growing import DATA

TREE = {"parent": [-1, 0, 0, 1], "tokens": [10, 3, 2, 4], "birth": [-9, 1, 1, 4], "end": [0, 3, 2, 7]}


def without(key: str) -> dict:
    return {name: column for name, column in TREE.items() if name != key}


@pytest.fixture
def write(tmp_path: Path):
    def written(content: object, name: str = "trees.json") -> Path:
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return written


def test_a_plain_tree_is_taken_as_it_is(write):
    forest = read_trees(write(TREE))
    assert (forest.trees[0].prompt, forest.template, forest.records) == (10, False, 1)
    assert forest.trees[0].parent.tolist() == TREE["parent"]


def test_plain_trees_stand_in_a_list(write):
    forest = read_trees(write({"trees": [TREE, TREE]}))
    assert [each.prompt for each in forest.trees] == [10, 10]


@pytest.mark.parametrize("content", [{"task": "x", "trees": [TREE]}, {"trees": [{"i": 0, **TREE}]}])
def test_a_templates_prompt_is_one_longer_than_its_root(write, content):
    forest = read_trees(write(content))
    assert (forest.trees[0].prompt, forest.template) == (11, True)


def test_incomplete_trees_are_skipped_before_they_are_looked_at(write):
    records = [{"i": 3, "incomplete": 1}, {"i": 4, **TREE}, {"i": 5, "incomplete": 1, **TREE}, {"i": 6, **TREE}]
    forest = read_trees(write({"trees": records}), limit=2)
    assert [each.name for each in forest.trees] == ["trees.json, tree 4", "trees.json, tree 6"]
    assert (forest.records, forest.complete) == (4, 2)


def test_a_limit_takes_the_first_complete_ones():
    forest = read_trees(DATA / "sorting128ToT.json", limit=3)
    assert [each.name.split()[-1] for each in forest.trees] == ["1", "3", "4"]
    assert (forest.records, forest.complete) == (100, 77)


def test_a_tree_beyond_the_limit_is_not_checked(write):
    file = write({"trees": [TREE, {**TREE, "tokens": [-1] * 4}]})
    assert len(read_trees(file, limit=1).trees) == 1
    with pytest.raises(UsageError, match="tree 1"):
        read_trees(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ({}, "neither `trees` nor a tree"),
        ({"trees": {}}, "`trees` is not a list of trees"),
        ({"trees": [[]]}, "`trees` is not a list of trees"),
        ({"trees": []}, "no complete tree"),
        ({"trees": [{"incomplete": 1}]}, "no complete tree"),
        ({"accept_lengths": {}}, "accepted lengths, not trees"),
        *((without(key), f"without {key}") for key in TREE),
        ({"parent": [-1]}, "without tokens, birth, end"),
        ({**TREE, "tokens": 3}, "`tokens` is not a list"),
        ({**TREE, "tokens": [10, 3, 2, 4.5]}, "segment 3: 4.5 is not a whole number"),
        ({**TREE, "tokens": [10, 3, 2, True]}, "segment 3: True is not a whole number"),
        ({**TREE, "tokens": [10, 3, 2, 10**30]}, "not a whole number in range"),
        ({**TREE, "tokens": [10, 3, 2]}, "of one length above 0, not 4, 3, 4, 4"),
        ({key: [] for key in TREE}, "of one length above 0"),
        ({**TREE, "parent": [-1, 0, -1, 1]}, "2 roots .segments 0, 2."),
        ({**TREE, "parent": [1, 0, 0, 1]}, "a cycle, no segment is the root"),
        ({**TREE, "parent": [-1, 3, 0, 1]}, "segments 1, 3: a cycle"),
        ({**TREE, "parent": [-1, 1, 0, 0]}, "segment 1: a cycle"),
        ({**TREE, "parent": [-1, 0, 0, 9]}, "segment 3: the parent is no segment"),
        ({**TREE, "parent": [-1, 0, 0, -2]}, "segment 3: the parent is no segment"),
        ({**TREE, "tokens": [10, -3, 2, 4]}, "segment 1: a negative number of tokens"),
        ({**TREE, "birth": [-9, 1, 2, 4], "end": [0, 3, 3, 7]}, "segment 2: birth is not"),
        ({**TREE, "birth": [0, 1, 1, 4]}, "segment 0: birth is not"),
        ({**TREE, "end": [0, 3, 5, 7]}, "segment 2: end is not"),
    ],
)
def test_what_is_no_tree_is_refused_in_one_line(write, content, said):
    with pytest.raises(UsageError, match=said) as refused:
        read_trees(write(content))
    assert "\n" not in str(refused.value)
    assert "trees.json" in str(refused.value)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name, said in {"bytes.json": "not text", "none.json": "No such file", ".": "directory"}.items():
        with pytest.raises(UsageError, match=said):
            read_trees(tmp_path / name)
