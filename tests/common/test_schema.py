"""What is written as JSON is read back, and what has another form is refused by name."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.schema import from_json


@dataclass(frozen=True)
class Leaf:
    name: str
    factor: float
    flag: bool = False


@dataclass(frozen=True)
class Tree:
    count: int
    leaves: list[Leaf]
    best: Leaf | None


LEAVES = st.builds(Leaf, st.text(), st.floats(allow_nan=False), st.booleans())


@given(st.builds(Tree, st.integers(), st.lists(LEAVES), st.none() | LEAVES))
def test_what_is_written_is_read_back(tree: Tree):
    assert from_json(Tree, json.loads(json.dumps(asdict(tree)))) == tree


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"count": "1"}, "'1' is no int"),
        ({"count": True}, "True is no int"),
        ({"leaves": {}}, "is no list"),
        ({"leaves": [{"name": "a", "factor": "x", "flag": True}]}, "'x' is no number"),
        ({"best": {"name": "a"}}, "Leaf has factor, flag, name, not name"),
        ({"more": 1}, "Tree has best, count, leaves, not best, count, leaves, more"),
    ],
)
def test_what_has_another_form_is_refused(changes: dict[str, Any], line: str):
    with pytest.raises(TypeError, match=line):
        from_json(Tree, {"count": 1, "leaves": [], "best": None} | changes)


def test_a_whole_number_is_a_number():
    assert from_json(Leaf, {"name": "a", "factor": 1, "flag": False}) == Leaf("a", 1.0)
