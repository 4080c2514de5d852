"""Random trees: every branch is given what it has alone."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.pairs import make_pair
from tests.tree.trees import KINDS, Grove, model_of

_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.sampled_from([1, 1, 1, 2, 5, 17])),
        st.tuples(st.just("choose"), st.lists(st.integers(0, 7), min_size=1, max_size=6)),
        st.tuples(st.just("hold"), st.integers(0, 7)),
        st.tuples(st.just("return"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
        st.tuples(st.just("prune"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=24,
)
_PROMPTS = st.lists(st.integers(1, 20), min_size=1, max_size=3)

_model = cache(model_of)


def _play(grove: Grove, prompts: list[int], events: list[tuple[str, Any]]) -> None:
    """Let a grove go through events; what they name is taken modulo what there is."""
    grove.plant(prompts)
    held: list[tuple[int, Any]] = []
    for event, what in events:
        if event == "grow" and max(len(branch.ids) for branch in grove.rows) + what <= 120:
            grove.grow(what)
        elif event == "choose":
            grove.choose([row % len(grove.rows) for row in what])
        elif event == "hold":
            row = what % len(grove.rows)
            held.append((grove.cache.hold(row), grove.rows[row].copy()))
        elif event == "return" and held:
            chosen = [held[index % len(held)] for index in what]
            grove.ended += grove.rows
            grove.rows = [branch.copy() for _, branch in chosen]
            grove.cache.branch([name for name, _ in chosen])
        elif event == "prune" and held:
            grove.cache.prune(held.pop(what % len(held))[0])


@pytest.mark.parametrize("kind", KINDS)
@given(prompts=_PROMPTS, events=_EVENTS, seed=st.integers(0, 9))
@settings(max_examples=12, derandomize=True)
def test_every_branch_of_a_random_tree_is_given_what_it_has_alone(
    kind: str, prompts: list[int], events: list[tuple[str, Any]], seed: int
) -> None:
    grove = Grove(_model(kind), seed, page_tokens=4)
    _play(grove, prompts, events)
    grove.assert_exact()


@pytest.mark.parametrize("kind", ["grouped heads", "soft caps and windows"])
def test_a_tree_twelve_deep_is_exact(kind: str) -> None:
    grove = Grove(_model(kind), seed=3)
    grove.plant([9, 4])
    for depth in range(12):
        grove.choose([*range(len(grove.rows)), depth % len(grove.rows)])
        grove.grow(1 + depth % 3)
    assert len(grove.cache.live.rows) == 14
    grove.assert_exact()


@pytest.mark.parametrize("kind", ["own heads", "windows in some layers"])
def test_long_segments_go_on_in_new_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefold.tree.cache.live.MOVABLE", 8)
    grove = Grove(_model(kind), seed=4, page_tokens=2)
    grove.plant([11])
    grove.choose([0, 0])
    for _ in range(30):
        grove.grow(1)
    assert len(grove.cache.live.rows[0].path()) > 2
    grove.assert_exact()


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "gemma2"])
def test_a_folded_model_is_exact_too(model_type: str) -> None:
    pair = make_pair(Path(mkdtemp()), model_type, num_hidden_layers=2)
    grove = Grove(pair.folded, seed=5)
    grove.plant([6, 12])
    for rows in ([0, 0, 1, 1, 1], [4, 0, 1, 3], [0, 0, 3, 3, 2]):
        grove.choose(rows)
        grove.grow(3)
        grove.grow(1)
    grove.assert_exact()
