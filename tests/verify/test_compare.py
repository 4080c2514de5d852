"""Properties of the distance between logits, whatever the logits are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefold.verify.compare import distance

LOGITS = st.floats(-50, 50, width=32)


@st.composite
def two_logits(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two tensors of one shape, ``[positions, vocab]``."""
    positions, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    lists = st.lists(LOGITS, min_size=positions * vocab, max_size=positions * vocab)
    one, other = (torch.tensor(draw(lists)).view(positions, vocab) for _ in range(2))
    return one, draw(st.sampled_from([one.clone(), other]))


PROPERTY = settings(deadline=None, max_examples=100)


@PROPERTY
@given(two_logits())
def test_it_is_zero_exactly_where_the_two_are_equal(pair):
    one, other = pair
    far = distance(one, other)
    assert far.is_zero == torch.equal(one, other)
    assert (far.nmse == 0) == torch.equal(one, other)


@PROPERTY
@given(two_logits())
def test_the_largest_difference_is_symmetric_and_no_figure_is_negative(pair):
    one, other = pair
    there, back = distance(one, other), distance(other, one)
    assert there.max_abs == back.max_abs
    assert there.top1_agreement == back.top1_agreement
    assert min(there.max_abs, there.nmse, there.kl_mean, there.kl_p99) >= 0
    assert 0 <= there.top1_agreement <= 1


@PROPERTY
@given(two_logits(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_nmse_does_not_depend_on_the_scale_and_the_largest_difference_does(pair, scale: float):
    one, other = (logits.double() for logits in pair)
    there, scaled = distance(one, other), distance(one * scale, other * scale)
    assert scaled.nmse == pytest.approx(there.nmse)
    assert scaled.max_abs == pytest.approx(there.max_abs * scale)


@PROPERTY
@given(two_logits(), st.floats(-8, 8))
def test_divergence_does_not_see_a_shift_of_all_logits(pair, shift: float):
    one, other = (logits.double() for logits in pair)
    assert distance(one, other + shift).kl_mean == pytest.approx(distance(one, other).kl_mean, abs=1e-9)


def test_divergence_is_the_textbook_figure_in_nats():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distance(one, other).kl_mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["reference", "other", "both"])
def test_what_is_not_finite_is_infinitely_far_even_from_itself(bad: float, where: str):
    good, broken = torch.zeros(2, 3), torch.zeros(2, 3)
    broken[1, 2] = bad
    pair = {"reference": (broken, good), "other": (good, broken), "both": (broken, broken)}[where]
    assert distance(*pair).max_abs == math.inf
    assert distance(*pair).top1_agreement == 0


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (1, 3)])
def test_another_shape_is_infinitely_far(shape: tuple[int, int]):
    assert distance(torch.ones(2, 3), torch.ones(shape)).max_abs == math.inf


def test_silence_is_compared_too():
    assert distance(torch.zeros(2, 3), torch.zeros(2, 3)).is_zero
    assert distance(torch.zeros(2, 3), torch.ones(2, 3)).nmse == math.inf
