"""Partial attention, and merging it."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefold.tree.cache import partial
from prefold.tree.cache.masks import Window
from prefold.tree.cache.partial import Partial, Scoring, add_sinks, attend, attend_causally, merge

_NONE = float("-inf")


def _states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, how: Scoring, mask: torch.Tensor | None = None
) -> Partial:
    """Attend in float64, as the formula says."""
    scores = query.double() @ keys.double().transpose(-1, -2) * how.scale
    scores = how.softcap * (scores / how.softcap).tanh() if how.softcap else scores
    scores = scores if mask is None else scores.masked_fill(~mask, _NONE)
    return (scores.softmax(-1).nan_to_num() @ values.double()).float(), scores.logsumexp(-1).float()


def _assert_near(found: Partial, expected: Partial) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("width", [8, 12])
@pytest.mark.parametrize(
    ("batch", "queries", "tokens"), [(1, 3, 9), (4, 1, 17), (1, 20, 1100), (1, 4, 1100), (2, 5, 1)]
)
def test_a_part_is_what_the_formula_says(
    batch: int, queries: int, tokens: int, width: int, softcap: float | None
) -> None:
    states = (
        _states(batch, 2, queries, 8),
        _states(batch, 2, tokens, 8, seed=1),
        _states(batch, 2, tokens, width, seed=2),
    )
    how = Scoring(0.3, softcap)
    _assert_near(attend(*states, how), _plain(*states, how))


@pytest.mark.parametrize("blocks", [1 << 23, 64])
def test_a_query_that_sees_nothing_has_no_weight(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_SCORES", blocks)
    states, mask = (_states(1, 2, 6, 8), _states(1, 2, 9, 8, seed=1), _states(1, 2, 9, 8, seed=2)), torch.ones(6, 9)
    mask[2], mask[4, 3:] = 0, 0
    out, total = attend(*states, Scoring(0.3), mask.bool())
    _assert_near((out, total), _plain(*states, Scoring(0.3), mask.bool()))
    assert (out[:, :, 2] == 0).all()
    assert (total[:, :, 2] == _NONE).all()


def test_no_keys_are_no_attention() -> None:
    out, total = attend(_states(1, 2, 3, 8), _states(1, 2, 0, 8), _states(1, 2, 0, 8), Scoring(1.0))
    assert out.abs().sum() == 0
    assert (total == _NONE).all()


@pytest.mark.parametrize("blocks", [1 << 23, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("window", "position"),
    [(None, 0), (Window("sliding", 4), 0), (Window("sliding", 40), 9), (Window("chunked", 5), 3), (None, 7)],
)
def test_new_tokens_see_themselves_and_those_before(
    window: Window | None, position: int, softcap: float | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_SCORES", blocks)
    states = _states(3, 2, 11, 8), _states(3, 1, 11, 8, seed=1).expand(-1, 2, -1, -1), _states(3, 2, 11, 8, seed=2)
    at = position + torch.arange(11)
    mask = at[None] <= at[:, None]
    if window is not None:
        mask &= at[None] >= window.first(at)[:, None]
    how = Scoring(0.3, softcap)
    _assert_near(attend_causally(*states, how, window, position), _plain(*states, how, mask))


def _cut(states: tuple[torch.Tensor, ...], cuts: list[int]) -> list[Partial]:
    query, keys, values = states
    bounds = [0, *sorted(cuts), keys.shape[2]]
    pieces = [(keys[:, :, a:b], values[:, :, a:b]) for a, b in pairwise(bounds)]
    return [tuple(each[0] for each in attend(query, *piece, Scoring(0.3))) for piece in pieces]  # type: ignore[misc]


def _as_pairs(part: Partial) -> Partial:
    """``[heads, queries, width]`` as one row's pair."""
    return part[0].unsqueeze(1), part[1].unsqueeze(1)


@given(st.lists(st.integers(0, 30), max_size=6))
def test_merged_parts_are_the_whole_however_it_is_cut(cuts: list[int]) -> None:
    states = _states(1, 2, 3, 8), 3 * _states(1, 2, 30, 8, seed=1), _states(1, 2, 30, 8, seed=2)
    parts = [_as_pairs(part) for part in _cut(states, cuts)]
    index = torch.arange(len(parts))[None]
    _assert_near(
        tuple(each[:, 0] for each in merge(parts, index)), tuple(each[0] for each in _plain(*states, Scoring(0.3)))
    )


def test_the_order_of_parts_does_not_matter() -> None:
    states = _states(1, 2, 3, 8), 3 * _states(1, 2, 30, 8, seed=1), _states(1, 2, 30, 8, seed=2)
    parts = [_as_pairs(part) for part in _cut(states, [4, 11, 12])]
    whole = tuple(each[0].unsqueeze(1) for each in _plain(*states, Scoring(0.3)))
    for order in permutations(parts):
        _assert_near(merge(order, None), whole)
        _assert_near(merge(order, torch.arange(4)[None]), whole)


@pytest.mark.parametrize("size", [-1e4, -90.0, 90.0, 1e4])
def test_scores_of_any_size_merge(size: float) -> None:
    out, total = _states(2, 1, 3, 4), torch.full((2, 1, 3), size)
    for index in (None, torch.tensor([[0, 1]])):
        merged = merge([(out, total), (out + 1, total + 2)], index)
        torch.testing.assert_close(merged[0], out + 1 / (1 + math.exp(-2)))
        torch.testing.assert_close(merged[1], total + math.log(1 + math.exp(2)))


def test_rows_with_fewer_parts_and_with_none() -> None:
    out, total = _states(2, 3, 1, 4), _states(2, 3, 1, seed=1)
    merged, totals = merge([(out, total)], torch.tensor([[0, 3], [1, 2], [3, 3]]))
    torch.testing.assert_close(merged[:, 0], out[:, 0])
    torch.testing.assert_close(totals[:, 1], torch.logaddexp(total[:, 1], total[:, 2]))
    assert (merged[:, 2] == 0).all()
    assert (totals[:, 2] == _NONE).all()


def test_a_sink_takes_its_share() -> None:
    out, total, sinks = _states(2, 1, 3, 4), _states(2, 1, 3, seed=1), _states(2, 1, 3, seed=2)
    share = total.exp() / (total.exp() + sinks.exp())
    torch.testing.assert_close(add_sinks((out, total), sinks), out * share.unsqueeze(-1))
