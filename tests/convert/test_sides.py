"""The sides of a model, and what each is run with."""

import pytest
import torch

from prefold.convert.model.inputs import Side, accepted, encoder_output, find_sides, whole_inputs
from tests.conftest import random_model, small_config, tokens

SIDES = {
    "llama": [Side()],
    "bert": [Side()],
    "t5": [Side("encoder"), Side("decoder", sees_source=True)],
    "bart": [Side("model.encoder"), Side("model.decoder", sees_source=True)],
    "whisper": [Side("model.decoder", sees_source=True)],  # its encoder hears
}


@pytest.fixture(scope="module", params=SIDES)
def model(request: pytest.FixtureRequest):
    return random_model(small_config(request.param))


def test_sides_are_those_that_take_tokens_the_encoder_first(model):
    assert find_sides(model) == SIDES[model.config.model_type]


@torch.no_grad()
def test_tokens_enter_on_every_side(model):
    ids = tokens()
    for side in find_sides(model):
        entered: list[torch.Size] = []
        embedding = model.get_submodule(side.name).get_input_embeddings()
        handle = embedding.register_forward_pre_hook(lambda _, args, seen=entered: seen.append(args[0].shape))
        logits = model(**side.inputs(model, ids, torch.ones_like(ids))).logits
        handle.remove()
        assert logits.shape == (*ids.shape, 97)
        assert logits.isfinite().all()
        assert ids.shape in entered


@torch.no_grad()
def test_the_whole_model_runs_over_tokens(model):
    ids = tokens()
    assert model(**whole_inputs(model, ids)).logits.shape == (*ids.shape, 97)


def test_a_decoder_gets_the_same_source_for_all_of_a_batch():
    model = random_model(small_config("bart"))
    side = find_sides(model)[1]
    one, many = (side.inputs(model, tokens(batch))["encoder_outputs"].last_hidden_state for batch in (1, 3))
    assert torch.equal(one.expand_as(many), many)
    assert torch.equal(one, encoder_output(model, 1).last_hidden_state)
    assert "encoder_outputs" not in find_sides(model)[0].inputs(model, tokens())


def test_what_a_forward_does_not_take_is_left_out():
    class Taker(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    class Free(torch.nn.Module):
        def forward(self, input_ids, **more):
            return input_ids

    assert accepted(Taker(), {"input_ids": 1, "use_cache": False}) == {"input_ids": 1}
    assert accepted(Free(), {"input_ids": 1, "use_cache": False}) == {"input_ids": 1, "use_cache": False}
