"""Rows are taken in the form in which a module returns them, and given back in it."""

import pytest
import torch

from prefold.convert.experiment.forms import PLAIN, Form, form_of
from tests.conftest import Checkpoint, load, tokens

BATCH, SEQ = 2, 8
ROWS = torch.randn(BATCH, SEQ, 5)


@pytest.mark.parametrize("form", [PLAIN, Form([0, 1], 0), Form([1, 2], 0), Form([], 1), Form([], 2), Form([0, 1], 3)])
def test_rows_come_back_from_their_form(form: Form):
    output = form.output(ROWS)
    assert form_of(output, BATCH, SEQ) == form
    assert torch.equal(form.rows(output), ROWS)


def test_more_than_one_tensor_has_no_form():
    assert form_of((ROWS, ROWS), BATCH, SEQ) is None
    assert form_of({"rows": ROWS}, BATCH, SEQ) is None


@pytest.mark.parametrize("batch", [3, 12])
def test_swapped_axes_are_known_where_no_shape_tells(batch: int, checkpoint: Checkpoint, fold):
    """The values behind a sequence of their own length: only what conversion saw tells which axis is which."""
    source = checkpoint("squeezebert")
    ids = tokens(batch, 32)  # as many as hidden_size
    said, told = (load(folder)(ids).logits for folder in (source, fold(source)))
    assert (said - told).abs().max() <= 1e-5 * said.abs().max()  # a sum of look-ups rounds otherwise: 4e-7 was seen


def test_a_model_that_pads_its_tokens_folds_at_lengths_beside_its_window(checkpoint: Checkpoint, fold):
    source = checkpoint("longformer")
    before, after = load(source), load(fold(source))
    for length in (5, 16, 21):
        said, told = (model(tokens(2, length)).logits for model in (before, after))
        assert (said - told).abs().max() <= 1e-5 * said.abs().max()
