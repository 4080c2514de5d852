"""A fold of a sum of look-ups is close and not equal: every new tensor is checked, and so is the error."""

from collections.abc import Callable

import pytest
import torch

from prefold.convert.checkpoint.files import TABLE
from prefold.verify import Verification, verify_checkpoint
from prefold.verify.outputs import check_greedy, check_logits
from tests.verify import faults
from tests.verify.conftest import MakePair, Pair

Breakable = Callable[[Pair], Pair]
WPE, C_ATTN, WTE = "transformer.wpe.prefold.weight", "transformer.h.0.attn.c_attn.bias", "transformer.wte.weight"


@pytest.fixture(scope="module")
def gpt2(make_pair: MakePair) -> Pair:
    return make_pair("gpt2")


def verified(pair: Pair) -> Verification:
    return verify_checkpoint(str(pair.source), pair.folded)


def problems(verification: Verification, check: str) -> str:
    return "\n".join(verification.checks[check].problems)


def test_unbroken_it_passes_and_tells_all_three_errors(gpt2: Pair):
    verification = verified(gpt2)
    assert verification.passed, verification.as_markdown()
    logits = verification.checks["logits"].figures
    assert not logits["exact"]
    for error in ("source_error", "folded_error", "between"):
        assert 0 < logits[error]["nmse"] < 1e-9
    rows = verification.checks["rows"].figures
    assert rows["rows"] == 97 + 128 + 1
    assert {WPE, C_ATTN} <= rows["max_abs_difference"].keys()


@pytest.mark.parametrize(
    ("tensor", "place"),
    [(WPE, (127, 5)), (C_ATTN, (0, 50)), (WTE, (41, 3)), (WTE, (41, 32 + 50))],
    ids=["position's twin", "bias", "residual", "column"],
)
def test_one_wrong_value_of_a_new_tensor_fails_rows(
    tensor: str, place: tuple[int, int], gpt2: Pair, breakable: Breakable
):
    """Position 127 is in no prompt: only a comparison of all rows can see it."""
    pair = breakable(gpt2)
    with faults.edited_tensors(pair.folded / TABLE) as tensors:
        tensors[tensor][place] += 1e-3
    faults.hide(pair.folded)
    verification = verified(pair)
    assert "rows" in verification.failed
    assert "structure" not in verification.failed
    assert f"1 wrong rows, the first of tokens [{place[0]}]" in problems(verification, "rows")


@pytest.mark.parametrize("tensor", [WPE, C_ATTN, WTE])
def test_a_changed_tensor_fails_structure_by_its_hash(tensor: str, gpt2: Pair, breakable: Breakable):
    pair = breakable(gpt2)
    with faults.edited_tensors(pair.folded / TABLE) as tensors:
        tensors[tensor][0, 0] += 1e-3
    verification = verified(pair)
    assert {"structure", "rows"} <= set(verification.failed)
    assert problems(verification, "structure") == f"{tensor}: not the table that was written (its hash differs)"


def test_a_twin_that_is_rolled_by_one_position_fails_rows_and_logits(gpt2: Pair, breakable: Breakable):
    pair = breakable(gpt2)
    with faults.edited_tensors(pair.folded / TABLE) as tensors:
        tensors[WPE] = tensors[WPE].roll(1, 0)
    faults.hide(pair.folded)
    verification = verified(pair)
    assert {"rows", "logits"} <= set(verification.failed)
    assert f"furthest off in {WPE}" in problems(verification, "rows")


@pytest.mark.parametrize("setting", ["eps", "centred"])
def test_another_norm_in_the_config_is_not_run(setting: str, gpt2: Pair, breakable: Breakable):
    pair = breakable(gpt2)
    changed = {"eps": 1e-3, "centred": False}[setting]
    faults.edit_config(lambda config: config["prefold"]["folds"][0]["sum"]["norms"][0].update({setting: changed}))(
        pair.folded
    )
    verification = verified(pair)
    assert f"prefold.folds.0.sum.norms.0.{setting} is {changed!r}" in problems(verification, "structure")
    assert not verification.passed


VOCABULARY, STEPS = 50, 6


def said(error: float = 0.0, seed: int = 1) -> dict[str, torch.Tensor]:
    """Return what a model might say; ``error`` is how far it is from what it should."""
    truth, noise = (torch.Generator().manual_seed(each) for each in (0, seed))
    shapes = {"prefill": (20, VOCABULARY), "padded": (30, VOCABULARY), "text": (400, VOCABULARY)}
    outputs = {
        name: torch.randn(shape, generator=truth, dtype=torch.float64)
        + error * torch.randn(shape, generator=noise, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    step = outputs["prefill"][-STEPS - 1 : -1]
    best = step.topk(5)
    return outputs | {
        "step": step,
        "tokens": best.indices[None, :, 0],
        "top": best.indices[None],
        "margin": (best.values[:, 0] - best.values[:, 1])[None],
    }


@pytest.mark.parametrize(
    ("folded_error", "passes"), [(0.5, True), (1.0, True), (1.01, True), (1.04, False), (2.0, False)]
)
@pytest.mark.parametrize("source_error", [1e-6, 1e-2])
def test_the_error_may_be_1_05_times_the_sources(source_error: float, folded_error: float, passes: bool):
    """Errors are squared: 1.04 times the noise is 1.08 times the error."""
    outcome = check_logits(said(source_error), said(source_error * folded_error), "float64", said())
    assert outcome.passed is passes
    assert outcome.figures["error_ratio"] == pytest.approx(folded_error**2, rel=1e-2)
    assert bool(outcome.problems) is not passes


def test_equal_logits_pass_whatever_the_truth():
    assert check_logits(said(1e-3), said(1e-3), "float32", said()).passed


@pytest.mark.parametrize("name", ["prefill", "padded", "text", "step"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.1])
def test_no_pass_may_be_wrong_in_one_place(name: str, bad: float):
    folded = said(1e-6, seed=2)
    folded[name] = folded[name].clone()
    folded[name][3, 4] += bad
    assert not check_logits(said(1e-6), folded, "float32", said()).passed


def test_logits_of_another_shape_are_a_problem_and_not_an_exception():
    folded = said(1e-6) | {"padded": torch.zeros(30, VOCABULARY + 1)}
    outcome = check_logits(said(1e-6), folded, "float32", said())
    assert outcome.problems == ["logits have shape [30, 51], the source's [30, 50]"]


def parted(margin: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what two models say that part at one token, where the source's two best are ``margin`` apart."""
    source = said(1e-3)
    source["margin"] = torch.full_like(source["margin"], margin)
    folded = dict(source)
    folded["tokens"] = source["tokens"].clone()
    folded["tokens"][0, 2] = source["top"][0, 2, 1]
    return source, folded


@pytest.mark.parametrize(("margin", "passes"), [(0.0, True), (1e-3, True), (0.1, False)])
def test_tokens_may_part_only_where_the_sources_margin_is_within_its_noise(margin: float, passes: bool):
    source, folded = parted(margin)
    noise = float((source["prefill"] - said()["prefill"]).abs().max())
    assert 1e-3 < 2 * noise < 0.1
    outcome = check_greedy(source, folded, exact=False, truth=said())
    assert outcome.passed is passes
    tokens = [int(each["tokens"][0, 2]) for each in (folded, source)]
    line = f"prompt 0: token 2 is {tokens[0]}, the source's is {tokens[1]}"
    assert outcome.problems == ([] if passes else [line])


def test_a_token_that_is_not_among_the_best_never_passes():
    source, folded = parted(0.0)
    folded["tokens"][0, 2] = next(token for token in range(VOCABULARY) if token not in source["top"][0, 2])
    assert not check_greedy(source, folded, exact=False, truth=said()).passed
