"""What no row needs of a first block is not loaded."""

import pytest
import torch
from safetensors.torch import load_file

from prefold.convert.checkpoint.source import open_source
from prefold.convert.fold.first_layer import load_first_layer
from prefold.convert.study import study_model
from tests.conftest import Checkpoint, random_model, small_config

FIRST = "model.layers.0"


def unreached(model_type: str) -> list[str]:
    model = random_model(small_config(model_type))
    return study_model(type(model), model.config).unreached


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("mixtral", [f"{FIRST}.self_attn.o_proj", f"{FIRST}.mlp", f"{FIRST}.post_attention_layernorm"]),
        ("gpt_neox", []),  # parallel: the FFN is a column, and what comes before it runs
        ("gpt2", []),  # a sum of look-ups
    ],
)
def test_what_lies_behind_the_last_column_is_named(model_type: str, names: list[str]):
    assert sorted(unreached(model_type)) == sorted(names)


def test_a_serial_blocks_experts_are_not_loaded(checkpoint: Checkpoint):
    source = open_source(str(checkpoint("mixtral")))
    model = random_model(small_config("mixtral"))
    study = study_model(type(model), model.config)
    loaded = load_first_layer(source, type(model), model.config, study.stacks, study.unreached, dtype=torch.float32)
    held = {name for name, _ in loaded.named_parameters() if name.startswith(FIRST)}
    assert held == {f"{FIRST}.input_layernorm.weight", *(f"{FIRST}.self_attn.{part}_proj.weight" for part in "qkv")}
    assert not any(parameter.is_meta for parameter in loaded.parameters())


@pytest.mark.parametrize("model_type", ["mixtral", "deepseek_v2", "jamba", "gemma3n_text", "qwen3_5_text"])
def test_a_table_is_the_same_without_what_is_not_loaded(checkpoint: Checkpoint, fold, monkeypatch, model_type: str):
    source = checkpoint(model_type)
    without = fold(source, "without")
    assert unreached(model_type)
    monkeypatch.setattr("prefold.convert.study.find_unreached", lambda *_: [])
    with_all = fold(source, "with")
    tables = [load_file(folder / "prefold_table.safetensors") for folder in (without, with_all)]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])
