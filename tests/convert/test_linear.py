"""Two small tables behind a scale are the projection of the norm of the sum, in float64 to the last digits."""

import copy
from dataclasses import dataclass

import pytest
import torch
from transformers import PreTrainedModel

from prefold.convert.experiment.trace import trace
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import Linear, added_tensors, table_rows
from prefold.convert.study import study_model
from tests.conftest import SUMS, random_model, small_config, tokens

DOUBLE = {"rtol": 1e-12, "atol": 1e-12}


@dataclass(frozen=True)
class Whole:
    """A model in float64, one of its cuts, and everything that a fold stores of it, in float64."""

    model: PreTrainedModel
    cut: Cut
    rows: torch.Tensor
    added: dict[str, torch.Tensor]


CASES = [(name, side) for name in SUMS for side in ((0, 1) if name == "bart" else (0,))]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def whole(request: pytest.FixtureRequest) -> Whole:
    model_type, side = request.param
    config = small_config(model_type)
    model = random_model(config).double()
    cut = study_model(type(model), config).cuts[side]
    given_away = copy.deepcopy(model)
    rows = torch.cat(list(table_rows(given_away, cut, 40)))
    return Whole(model, cut, rows, dict(added_tensors(copy.deepcopy(model), cut, torch.float64)))


def seen_by(whole: Whole, ids: torch.Tensor) -> dict[str, tuple[torch.Tensor | None, torch.Tensor]]:
    """Run the live model; returns what its norms took and what its columns said."""
    first = whole.cut.sum.columns[0].module
    block = first[: first.index(".0.") + 2]
    calls = trace(whole.model, whole.cut.side, block, ids).calls
    return {name: (calls[name][0].taken, calls[name][0].tensor) for name in calls if len(calls[name]) == 1}


def scale_of(values: torch.Tensor, centred: bool, eps: float) -> torch.Tensor:
    centre = values - values.mean(-1, keepdim=True) if centred else values
    return torch.rsqrt(centre.square().mean(-1, keepdim=True) + eps)


def other_parts(whole: Whole, ids: torch.Tensor) -> torch.Tensor:
    """Look up what everything but the token adds: rows are found by what the live look-ups returned."""
    seen, total = seen_by(whole, ids), torch.zeros((), dtype=torch.float64)
    for look_up in whole.cut.sum.look_ups:
        values = getattr(whole.model.get_submodule(look_up.module), look_up.weight).detach()
        returned = seen[look_up.module][1].flatten(0, -2)
        numbers = torch.tensor([(values == row).all(1).nonzero()[0].item() for row in returned])
        parts = whole.added[f"{look_up.module}.prefold.{look_up.weight}"][numbers]
        total = total + parts.view(*seen[look_up.module][1].shape[:-1], -1)
    return total


def test_shapes_are_those_that_the_cut_announces(whole: Whole):
    assert whole.rows.shape == (whole.cut.rows, whole.cut.row_width)
    assert {name: list(values.shape) for name, values in whole.added.items()} == whole.cut.added


def test_the_parts_behind_the_scales_are_the_live_projections(whole: Whole):
    """W (s * centre(e + p) * gain + shift) + b = s * (A[t] + B[i]) + c, step by step through every norm."""
    ids, sum_ = tokens(2, 8), whole.cut.sum
    seen = seen_by(whole, ids)
    start = sum_.columns[0].start
    total = whole.rows[ids][..., start : start + sum_.width] + other_parts(whole, ids)
    scales = [scale_of(seen[norm.module][0], norm.centred, norm.eps) for norm in sum_.norms]
    for column in sum_.columns:
        got = total[..., column.start - start : column.start - start + column.width]
        bias = whole.added[f"{column.module}.bias"]
        for step in range(sum_.steps):
            got = (got * scales[step] if scales else got) + bias[step]
        torch.testing.assert_close(got.view(*ids.shape, *column.shape), seen[column.module][1], **DOUBLE)


def test_what_is_pure_lies_before_it_as_it_is(whole: Whole):
    ids = tokens(2, 8)
    seen = seen_by(whole, ids)
    for column in [whole.cut.residual, *whole.cut.columns]:
        stored = whole.rows[ids][..., column.start : column.start + column.width]
        torch.testing.assert_close(stored, seen[column.module][1].flatten(2), rtol=0, atol=0)


@torch.no_grad()
def test_a_part_is_additive(whole: Whole):
    linear = Linear(copy.deepcopy(whole.model), whole.cut, whole.cut.sum)
    one, two = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(linear.part(one + two), linear.part(one) + linear.part(two), **DOUBLE)
    assert not linear.part(torch.zeros_like(one)).any()
