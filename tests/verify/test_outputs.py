"""What each check lets pass and what it does not, on figures made by hand."""

from typing import Any

import pytest
import torch

from prefold.convert.fold.layout import Column, Cut, Table
from prefold.convert.fold.reads import Parameter, ParameterReads
from prefold.convert.model.inputs import Side
from prefold.verify.outputs import check_greedy, check_logits, check_rows, check_speed
from prefold.verify.reads import check_reads

STEPS, VOCABULARY, PROMPT = 4, 8, 3


def said(seed: int = 0, noise: float = 0.0) -> dict[str, torch.Tensor]:
    """Return what a model might have said; ``noise`` is what its cached steps add to its prefill."""
    generator = torch.Generator().manual_seed(seed)
    prefill = torch.randn(PROMPT + STEPS, VOCABULARY, generator=generator)
    step = prefill[-STEPS - 1 : -1] + noise
    return {
        "prefill": prefill,
        "step": step,
        "padded": torch.randn(9, VOCABULARY, generator=generator),
        "tokens": step.argmax(-1)[None].repeat(2, 1),
        "top": step.topk(5).indices[None].repeat(2, 1, 1),
        "margin": (lambda best: best[:, 0] - best[:, 1])(step.topk(2).values)[None].repeat(2, 1),
    }


def off(outputs: dict[str, torch.Tensor], name: str, by: float) -> dict[str, torch.Tensor]:
    """Return the same outputs with one value of one of them moved."""
    moved = outputs[name].clone()
    moved[1, 2] += by
    return outputs | {name: moved}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_equal_logits_pass_and_are_called_exact(dtype: str):
    outcome = check_logits(said(), said(), dtype)
    assert outcome.passed
    assert outcome.figures["exact"]
    assert outcome.figures["noise_floor"]["max_abs"] == 0
    assert "bit for bit" in outcome.summary


@pytest.mark.parametrize("name", ["prefill", "step", "padded"])
@pytest.mark.parametrize(
    ("dtype", "noise", "by", "passes"),
    [
        ("float32", 0.0, 5e-5, True),
        ("float32", 0.0, 5e-3, False),
        ("float32", 1e-2, 5e-3, True),
        ("float32", 1e-2, 1e-1, False),
        ("float64", 0.0, 5e-3, False),
        ("bfloat16", 0.0, 1e-2, True),
        ("bfloat16", 0.0, 1.0, False),
        ("float16", 0.5, 1.0, True),
        ("float16", 0.5, 9.0, False),
    ],
)
def test_logits_pass_within_the_noise_floor_and_fail_beyond_it(
    name: str, dtype: str, noise: float, by: float, passes: bool
):
    source = said(noise=noise)
    outcome = check_logits(source, off(source, name, by), dtype)
    assert outcome.passed is passes
    assert not outcome.figures["exact"]
    assert [line.partition(":")[0] for line in outcome.problems] == ([] if passes else [name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_small_logits_do_not_hide_behind_an_absolute_bound(dtype: str):
    source = {name: value * 1e-6 if value.is_floating_point() else value for name, value in said().items()}
    outcome = check_logits(source, off(source, "padded", 5e-6), dtype)
    assert [line.partition(":")[0] for line in outcome.problems] == ["padded"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("source_bad", "folded_bad", "line"),
    [
        (False, True, "prefill: logits are not finite"),
        (True, False, "prefill: the source's own logits are not finite"),
        (True, True, "prefill: the source's own logits are not finite"),
    ],
)
def test_logits_that_are_not_finite_never_pass(dtype: str, source_bad: bool, folded_bad: bool, line: str):
    broken = off(said(), "prefill", torch.nan)
    outcome = check_logits(broken if source_bad else said(), broken if folded_bad else said(), dtype)
    assert not outcome.passed
    assert outcome.problems[0].startswith(line)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_noise_floor_that_is_not_finite_excuses_nothing(dtype: str):
    source = said()
    source["step"][-1] = torch.inf
    folded = off(said(), "padded", 3.0) | {"tokens": source["tokens"].roll(1, 1)}
    outcome = check_logits(source, folded, dtype)
    assert any(line.startswith("padded: ") for line in outcome.problems)


def test_logits_of_another_shape_are_a_problem_and_not_an_exception():
    folded = said() | {"padded": torch.zeros(9, VOCABULARY + 1)}
    outcome = check_logits(said(), folded, "float32")
    assert outcome.problems == ["padded: logits have shape [9, 9], the source's [9, 8]"]


def test_steps_are_compared_up_to_the_first_token_that_differs():
    source, folded = said(), said()
    folded["tokens"][0, 1] = (folded["tokens"][0, 1] + 1) % VOCABULARY
    folded["step"][2:] += 5
    outcome = check_logits(source, folded, "float32")
    assert outcome.passed
    assert outcome.figures["steps_compared"] == 2
    folded["step"][1] += 5
    assert not check_logits(source, folded, "float32").passed


def parted(*, near: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return what two models say that part at token 2 of prompt 1, between near ties or not."""
    tops = torch.arange(5).expand(2, STEPS, 5).clone()
    source = {"tokens": torch.zeros(2, STEPS, dtype=torch.long), "top": tops, "margin": torch.zeros(2, STEPS)}
    folded = source | {"tokens": source["tokens"].clone(), "top": tops.clone()}
    folded["tokens"][1, 2:] = 4 if near else 7
    folded["top"][1, 2, 4] = 4 if near else 7
    return source, folded


def test_equal_tokens_pass():
    outcome = check_greedy(said(), said(), exact=True)
    assert outcome.passed
    assert outcome.figures == {"continuations": 2, "equal": 2, "tokens": STEPS}


@pytest.mark.parametrize(("near", "exact", "passes"), [(True, False, True), (False, False, False), (True, True, False)])
def test_tokens_may_part_at_a_near_tie_unless_logits_are_equal(near: bool, exact: bool, passes: bool):
    outcome = check_greedy(*parted(near=near), exact=exact)
    assert outcome.passed is passes
    assert outcome.figures["equal"] == 1
    assert outcome.problems == ([] if passes else [f"prompt 1: token 2 is {4 if near else 7}, the source's is 0"])


def test_a_near_tie_must_be_one_for_both():
    source, folded = parted(near=True)
    source["top"][1, 2, 4] = 6
    assert not check_greedy(source, folded, exact=False).passed


def test_tokens_of_another_shape_are_a_problem_and_not_an_exception():
    outcome = check_greedy(said(), said() | {"tokens": torch.zeros(2, STEPS - 1)}, exact=False)
    assert outcome.problems == ["tokens have shape [2, 3], the source's [2, 4]"]


CUT = Cut(
    name="deepest",
    side=Side(),
    table=Table("e", None, "e.weight", rows=10, row_width=5, width=2),
    residual=Column("e", 0, [2]),
    columns=[Column("b.0.q", 2, [3])],
    dropped=[],
    merged=[],
    sum=None,
    entered_before=[""],
    unreachable=[],
    forms=[],
    length=1,
)


def census(share: float = 1.0) -> ParameterReads:
    """Return a model of an embedding, a folded projection, and a weight of which a token reads ``share``."""
    made = [
        Parameter("e.weight", (10, 2), per_token=2),
        Parameter("b.0.q.weight", (3, 2), share=1),
        Parameter("b.0.ffn.weight", (4, 5), share=share),
    ]
    return ParameterReads(
        {parameter.name: parameter for parameter in made}, [CUT], [], looked_up={"e": (1.0, 0.0)}, freed=["e.weight"]
    )


BEFORE = {str(batch): 4 * (2 * batch + 6 + 20) for batch in (1, 16, 64)}
AFTER = {str(batch): 4 * (5 * batch + 20) for batch in (1, 16, 64)}


def test_reads_as_the_formula_says_pass():
    outcome = check_reads(BEFORE, AFTER, census(), 4)
    assert outcome.passed
    assert [batch["before_bytes"] for batch in outcome.figures["batches"]] == list(BEFORE.values())
    assert [batch["formula_saved_bytes"] for batch in outcome.figures["batches"]] == [12, -168, -744]


@pytest.mark.parametrize("batch", ["1", "16", "64"])
@pytest.mark.parametrize("side", ["source", "folded"])
def test_reads_that_are_off_by_one_byte_fail(batch: str, side: str):
    before, after = dict(BEFORE), dict(AFTER)
    changed = before if side == "source" else after
    changed[batch] += 1
    outcome = check_reads(before, after, census(), 4)
    assert not outcome.passed
    assert all(line.startswith(f"batch {batch}: ") for line in outcome.problems)
    assert len(outcome.problems) == (2 if side == "source" else 1)


def test_reads_of_both_that_are_off_alike_fail_unless_tokens_choose_experts():
    before, after = ({batch: count + 8 for batch, count in reads.items()} for reads in (BEFORE, AFTER))
    assert not check_reads(before, after, census(), 4).passed
    assert check_reads(before, after, census(share=0.5), 4).passed
    assert not check_reads(before, after | {"16": 0}, census(share=0.5), 4).passed


def rows(**changes: Any) -> dict[str, Any]:
    """Return the figures of a comparison that found nothing."""
    found: dict[str, Any] = {
        "rows": 10,
        "unequal": 0,
        "beyond_rounding": 0,
        "not_finite": 0,
        "same_circumstances": True,
    }
    found |= {"first_unequal": [], "first_beyond_rounding": [], "first_not_finite": []}
    return found | {"max_abs_difference": {"e": 0.0, "b.0.q": 0.0}} | changes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equal_rows_pass(dtype: str):
    outcome = check_rows(rows(), dtype)
    assert outcome.passed
    assert outcome.summary == "all 10 rows equal the live first layer's"


@pytest.mark.parametrize(("dtype", "passes"), [("float32", True), ("float64", True), ("bfloat16", False)])
def test_rows_that_differ_by_rounding_pass_in_wide_types_alone(dtype: str, passes: bool):
    found = rows(unequal=2, first_unequal=[3, 4], max_abs_difference={"e": 0.0, "b.0.q": 1e-7})
    outcome = check_rows(found, dtype)
    assert outcome.passed is passes
    assert "2 of 10 rows differ, by at most 1e-07" in outcome.summary
    line = "2 wrong rows, the first of tokens [3, 4], furthest off in b.0.q (1e-07)"
    assert outcome.problems == ([] if passes else [line])


def test_16_bit_rows_may_round_otherwise_where_they_were_computed_otherwise():
    found = rows(unequal=2, first_unequal=[3, 4], same_circumstances=False)
    assert check_rows(found, "bfloat16").passed
    assert not check_rows(found | {"beyond_rounding": 1, "first_beyond_rounding": [3]}, "bfloat16").passed


def test_rows_beyond_rounding_fail():
    found = rows(unequal=1, beyond_rounding=1, first_beyond_rounding=[7], max_abs_difference={"e": 0.5, "b.0.q": 0.0})
    outcome = check_rows(found, "float32")
    assert outcome.problems == ["1 wrong rows, the first of tokens [7], furthest off in e (0.5)"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_not_finite_fail_even_where_they_equal_the_source(dtype: str):
    outcome = check_rows(rows(not_finite=1, first_not_finite=[6]), dtype)
    assert outcome.problems == ["1 rows are not finite, the first of tokens [6]"]


def encoded(**changes: Any) -> dict[str, Any]:
    """Return the figures of a comparison of rows in fewer bytes that found nothing."""
    errors = {"e": {"max_abs": 0.0, "relative": 0.0}, "b.0.q": {"max_abs": 0.125, "relative": 0.0123}}
    return rows(padding_not_zero=0, first_padding_not_zero=[], errors=errors) | changes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_in_fewer_bytes_pass_with_the_column_told_that_lost_most(dtype: str):
    outcome = check_rows(encoded(), dtype)
    assert outcome.passed
    assert outcome.summary.endswith("; stored in fewer bytes, b.0.q is furthest off: 1.23%, max |Δ| 0.125")
    assert outcome.figures["errors"]["b.0.q"] == {"max_abs": 0.125, "relative": 0.0123}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_that_is_not_zero_fails_wherever_rows_were_made(dtype: str, same: bool):
    outcome = check_rows(encoded(padding_not_zero=1, first_padding_not_zero=[3], same_circumstances=same), dtype)
    assert outcome.problems == ["1 rows are not zero behind their values, the first of tokens [3]"]


def test_speed_is_a_figure_beside_the_one_that_reads_predict():
    measured = {"ratio": 0.5, "source_tokens_per_second": 2.0, "folded_tokens_per_second": 1.0}
    outcome = check_speed(measured, {"1": 300}, {"1": 200})
    assert outcome.passed
    rates = {"source_bytes_per_second": 600, "folded_bytes_per_second": 200}
    assert outcome.figures == measured | rates | {"predicted_ratio": 1.5}
    assert outcome.summary.endswith("source 2.0 tokens/s, 0.00 GB/s; folded 1.0 tokens/s, 0.00 GB/s")
