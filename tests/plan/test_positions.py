"""The context that a model has positions for, as its config names it."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefold.common.errors import UsageError
from prefold.plan import Mesh, Space, Workload, advise, find_chip, find_shape
from prefold.plan.model.config import shape_from_config
from prefold.plan.model.shape import Shape

CONFIGS = Path(__file__).parents[1] / "configs"


def shape_of(name: str, **changes: Any) -> Shape:
    return shape_from_config(json.loads((CONFIGS / f"{name}.json").read_text()) | changes, gated=True)


def space_of(shape: Shape, workload: Workload) -> Space:
    return Space(shape, find_chip("h100"), workload, (Mesh(1, 1, 1),), (1,))


def test_a_config_names_its_positions():
    assert shape_of("pythia-6.9b").max_position_embeddings == 2048
    assert shape_of("mixtral-8x7b").max_position_embeddings == 32768


@pytest.mark.parametrize("name", ["n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "max_target_positions"])
def test_positions_have_several_names(name: str):
    changes = {"max_position_embeddings": None, name: 77, "model_type": "none that transformers knows"}
    assert shape_of("pythia-6.9b", **changes).max_position_embeddings == 77


@pytest.mark.parametrize("told", [None, -1, 0, True, "many"])
def test_without_a_number_there_is_no_limit(told: object):
    changes = {"max_position_embeddings": told, "model_type": "none that transformers knows"}
    assert shape_of("pythia-6.9b", **changes).max_position_embeddings == 0


def test_the_default_of_a_class_is_no_limit():
    config = json.loads((CONFIGS / "pythia-6.9b.json").read_text())
    del config["max_position_embeddings"]
    assert shape_from_config(config, gated=False).max_position_embeddings == 0


def test_a_model_whose_layers_all_have_a_window_has_no_limit():
    assert shape_of("mistral-7b").sliding_layers == 32
    assert shape_of("mistral-7b").max_position_embeddings == 0
    assert shape_of("mistral-7b", sliding_window=None).max_position_embeddings == 32768


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 2048),
        ({"type": "linear", "factor": 2.0}, 2048),
        ({"type": "yarn", "factor": float("inf"), "original_max_position_embeddings": 2048}, 2048),
        (None, 2048),
    ],
)
def test_scaled_positions_are_some_times_the_original_ones(scaling: object, expected: int):
    changes = {"rope_scaling": scaling, "model_type": "none that transformers knows"}
    assert shape_of("pythia-6.9b", **changes).max_position_embeddings == expected


def test_models_by_name_have_no_limit():
    assert find_shape("pythia-6.9b").max_position_embeddings == 0


@pytest.mark.parametrize(("phase", "most"), [("decode", 2047), ("prefill", 2048)])
def test_a_context_beyond_the_positions_is_refused(phase: Any, most: int):
    shape = shape_of("pythia-6.9b")
    assert advise(space_of(shape, Workload(phase, 1, most))).chosen
    with pytest.raises(UsageError) as refused:
        space_of(shape, Workload(phase, 1, most + 1))
    had = "gpt_neox has 2,048 positions (max_position_embeddings)"
    assert str(refused.value) == f"context {most + 1:,}: {had}, and this {phase} needs 2,049"
