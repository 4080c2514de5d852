"""A thin product is the product with the matrix that it stands for, and a study finds with it what it finds without."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from prefold.convert import UnsupportedModel
from prefold.convert.fold.reads import metered
from prefold.convert.model import filling
from prefold.convert.model.filling import ThinProducts, mark
from prefold.convert.study import Study, study_model
from tests.conftest import SHAPES, auto_class, small_config

SIZES = st.integers(1, 40)


@given(SIZES, SIZES, st.booleans())
def test_it_is_a_product_with_a_nearly_empty_matrix(width: int, out: int, biased: bool):
    for layer, one in ((nn.Linear(width, out, biased), torch.eye(width)), (Conv1D(out, width), torch.eye(width))):
        mark(layer.weight, 1)
        values = torch.randn(2, 3, width)
        with torch.no_grad(), ThinProducts():
            bias = layer(torch.zeros(1, width))
            matrix = layer(one) - bias
            product = layer(values)
        torch.testing.assert_close(product, values @ matrix + bias)
        assert (matrix != 0).sum() == max(width, out)
        assert matrix.any(0).all()  # every output has a value
        assert matrix.any(1).all()  # and so has every input


def test_unmarked_weights_and_passes_outside_are_left_alone():
    layer, values = nn.Linear(8, 4), torch.randn(2, 8)
    full = layer(values)
    with ThinProducts():
        assert torch.equal(layer(values), full)
    mark(layer.weight, 1)
    assert torch.equal(layer(values), full)


def test_a_meter_counts_the_whole_weight():
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    mark(model[0].weight, 1)
    with ThinProducts(), metered(model) as meter:
        model(torch.randn(2, 8))
    assert meter.total == 8 * 4 * 4


def studied(config: PreTrainedConfig) -> Study | list[str]:
    try:
        return study_model(auto_class(config.model_type)._model_mapping[type(config)], config)
    except UnsupportedModel as refusal:
        return refusal.reasons


@pytest.mark.parametrize("model_type", SHAPES)
def test_a_study_finds_the_same_with_large_weights(model_type: str, monkeypatch: pytest.MonkeyPatch):
    config = small_config(model_type)
    full = studied(config)
    monkeypatch.setattr(filling, "LARGE", 64)
    assert studied(config) == full
