"""What is let pass of a checkpoint with smaller rows, on figures made by hand."""

import pytest
import torch

from prefold.verify.divergence import check_divergence, other_width

VOCABULARY, STEPS = 50, 6


def said(error: float = 0.0, seed: int = 1, size: float = 1.0) -> dict[str, torch.Tensor]:
    """Return what a model might say; ``error`` is how far it is from its source, beside logits of ``size``."""
    source, noise = (torch.Generator().manual_seed(each) for each in (0, seed))
    shapes = {"prefill": 20, "padded": 30, "text": 300, "passages": 300}
    outputs = {
        name: size * torch.randn(positions, VOCABULARY, generator=source, dtype=torch.float64)
        + error * torch.randn(positions, VOCABULARY, generator=noise, dtype=torch.float64)
        for name, positions in shapes.items()
    }
    step = outputs["prefill"][-STEPS - 1 : -1]
    return outputs | {"step": step, "tokens": step.argmax(-1)[None]}


@pytest.mark.parametrize("own", [0.05, 0.1])
@pytest.mark.parametrize(("factor", "passes"), [(0.5, True), (1.9, True), (2.1, False), (10.0, False)])
def test_the_mean_divergence_may_be_four_times_the_sources_own(own: float, factor: float, passes: bool):
    """A divergence is a squared error, so that four times as much is twice the difference."""
    outcome = check_divergence(said(), said(own * factor), said(own, seed=2), "float32")
    assert outcome.passed is passes
    figures = outcome.figures
    assert figures["limit"] == 4 * figures["noise_floor"]["kl_mean"] > 1e-4
    assert (figures["overall"]["kl_mean"] <= figures["limit"]) is passes
    assert [line.startswith("mean KL ") for line in outcome.problems] == ([] if passes else [True])


@pytest.mark.parametrize("other", [None, said(), said(torch.nan), said(1e-4)], ids=["none", "same", "nan", "near"])
@pytest.mark.parametrize(("error", "passes"), [(0.013, True), (0.016, False)])
def test_a_ten_thousandth_passes_whatever_the_sources_own(other, error: float, passes: bool):
    outcome = check_divergence(said(), said(error), other, "float32")
    assert outcome.figures["limit"] == 1e-4
    assert outcome.passed is passes
    assert (outcome.figures["overall"]["kl_mean"] <= 1e-4) is passes


def test_all_figures_stand_beside_the_sources_own():
    outcome = check_divergence(said(), said(0.02), said(0.01, seed=2), "bfloat16")
    names = {"max_abs", "nmse", "kl_mean", "kl_p99", "top1_agreement"}
    for name in ("prefill", "padded", "text", "passages", "step", "overall", "noise_floor"):
        assert outcome.figures[name].keys() == names
    assert outcome.figures["positions"] == 20 + 30 + 300 + 300 + STEPS
    for word in ("mean KL", "NMSE", "top-1", "KL p99", "656 positions", "the source itself in float32"):
        assert word in outcome.summary


def test_equal_logits_are_called_exact():
    assert check_divergence(said(), said(), said(0.1), "float32").figures["exact"]


@pytest.mark.parametrize("name", ["prefill", "padded", "text", "passages", "step"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 30.0])
def test_no_pass_may_be_wrong_in_one_place(name: str, bad: float):
    folded = said(1e-4)
    folded[name] = folded[name].clone()
    folded[name][3, 4] += bad
    outcome = check_divergence(said(), folded, said(1e-3), "float32")
    assert not outcome.passed
    assert not outcome.figures["exact"]


def test_a_source_that_is_not_finite_excuses_nothing():
    broken = said()
    broken["text"][0, 0] = torch.inf
    outcome = check_divergence(broken, broken, said(), "float32")
    assert outcome.problems == ["the source's own logits are not finite, so nothing can be compared with them"]


def test_logits_of_another_shape_are_a_problem_and_not_an_exception():
    outcome = check_divergence(said(), said() | {"padded": torch.zeros(30, VOCABULARY + 1)}, said(), "float32")
    assert outcome.problems == ["logits have shape [30, 51], the source's [30, 50]"]


def test_steps_are_compared_up_to_the_first_token_that_differs():
    folded = said()
    folded["tokens"] = folded["tokens"].clone()
    folded["tokens"][0, 2] += 1
    folded["step"] = folded["step"].clone()
    folded["step"][3:] += torch.randn(STEPS - 3, VOCABULARY) * 9
    outcome = check_divergence(said(), folded, said(), "float32")
    assert outcome.passed
    assert outcome.figures["steps_compared"] == 3
    folded["step"][2] += torch.randn(VOCABULARY) * 9
    assert not check_divergence(said(), folded, said(), "float32").passed


@pytest.mark.parametrize(("error", "passes"), [(5e-4, True), (5e-3, False)])
def test_small_hidden_states_do_not_hide_behind_a_divergence(error: float, passes: bool):
    """Of values like a normalized embedding's, the divergence is next to nothing whatever they are."""
    source, folded = said(size=0.05), said(error, size=0.05)
    outcome = check_divergence(source, folded, said(1e-5, seed=2, size=0.05), "float32", has_logits=False)
    assert outcome.passed is passes
    assert outcome.figures["overall"]["kl_mean"] < 1e-4
    assert outcome.figures["judged_by"] == "nmse"


def test_the_other_type_is_the_one_that_models_are_run_in_as_well():
    widths = {name: other_width(name) for name in ("bfloat16", "float16", "float32", "float64")}
    assert widths == dict.fromkeys(("bfloat16", "float16"), "float32") | dict.fromkeys(
        ("float32", "float64"), "bfloat16"
    )
