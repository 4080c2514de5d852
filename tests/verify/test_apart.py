"""Where two models part first."""

import pytest
import torch

from prefold.verify.probe.apart import first_apart, sketches
from tests.conftest import Checkpoint, load

IDS = {"input_ids": torch.tensor([[3, 5, 7]])}


def test_the_first_module_that_returns_something_else_is_named(checkpoint: Checkpoint):
    source = checkpoint("llama")
    model, broken = load(source), load(source)
    broken.model.layers[1].mlp.up_proj.weight.data[3] += 1
    one, other = sketches(model, IDS), sketches(broken, IDS)
    assert first_apart(one, one, [], "float32") is None
    assert first_apart(one, other, [], "float32") == "model.layers.1.mlp.up_proj"
    assert first_apart(one, other, ["model.layers.1.mlp"], "float32") == "model.layers.1"


@pytest.mark.parametrize(("dtype", "named"), [("float32", "a"), ("bfloat16", None)])
def test_rounding_of_the_type_is_let_pass(dtype: str, named: str | None):
    assert first_apart([("a", 10.0, 100.0)], [("a", 10.1, 100.0)], [], dtype) == named


def test_what_is_not_finite_parts():
    assert first_apart([("a", 1.0, 1.0)], [("a", float("nan"), 1.0)], [], "bfloat16") == "a"
