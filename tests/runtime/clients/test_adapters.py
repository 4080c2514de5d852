"""PEFT chooses the modules to adapt by type, and so the same for a fold as for its source."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.conftest import auto_class, some, tokens
from tests.runtime.clients.checkpoints import folded, text_checkpoint
from tests.runtime.clients.ways import RUNTIME, STOCK, Way
from tests.runtime.pairs import logits

# By type, the name of the list of layers.
LAYERS = {"llama": "layers", "gpt_neox": "layers", "falcon": "h", "gpt2": "h", "bert": "layer", "t5": "block"}


def _loaded(checkpoint: Path, way: Way, model_type: str) -> Any:
    model = auto_class(model_type).from_pretrained(checkpoint, **way.options)
    way.require(model)
    return model


def _adapted(model: Any, **options: Any) -> peft.PeftModel:
    """Adapt a model with weights that change what it says; its type names the modules."""
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **options)).eval()


@pytest.mark.parametrize("model_type", some(LAYERS, "gpt_neox", "gpt2"))
def test_default_modules_that_are_folded_are_refused_by_name(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    assert len(_adapted(_loaded(source, STOCK, model_type)).targeted_module_names) >= 2
    with pytest.raises(ValueError, match=rf"{LAYERS[model_type]}\.0\.\S+ is folded into the table"):
        _adapted(_loaded(folded(source), way, model_type))


@pytest.mark.parametrize("model_type", some(LAYERS, "gpt_neox", "gpt2"))
def test_default_modules_of_later_layers_are_adapted_as_in_the_source(
    model_type: str, way: Way, tmp_path: Path
) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    options = {"exclude_modules": rf".*\.{LAYERS[model_type]}\.0\..*"}
    before = _loaded(source, STOCK, model_type)
    one, other = (_adapted(each, **options) for each in (before, _loaded(folded(source), way, model_type)))
    assert other.targeted_module_names == one.targeted_module_names
    assert other.peft_config["default"].target_modules == one.peft_config["default"].target_modules
    given = {"decoder_input_ids": tokens()} if model_type == "t5" else {}
    expected, said = (each(input_ids=tokens(), **given).logits for each in (one, other))
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)
    with one.disable_adapter():
        assert (expected - one(input_ids=tokens(), **given).logits).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", some(["llama", "gpt2", "bloom"], "llama"))
def test_prefix_of_keys_and_values_says_what_it_says_to_the_source(model_type: str, way: Way, tmp_path: Path) -> None:
    source, said = text_checkpoint(tmp_path / "source", model_type), []
    for checkpoint, loaded in ((source, STOCK), (folded(source), way)):
        torch.manual_seed(0)
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        said.append(logits(peft.get_peft_model(_loaded(checkpoint, loaded, model_type), config).eval(), tokens()))
    torch.testing.assert_close(said[1], said[0], rtol=1e-5, atol=1e-5)


def test_adapter_names_its_fold_and_is_loaded_onto_it(way: Way, tmp_path: Path) -> None:
    checkpoint = folded(text_checkpoint(tmp_path / "source", "llama"))
    options = {"task_type": "CAUSAL_LM", "layers_to_transform": [1, 2]}
    model = _adapted(_loaded(checkpoint, way, "llama"), **options)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", **way.options).eval()
    way.require(again.base_model.model)
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))


def test_adapter_without_a_task_is_loaded_by_hand(way: Way, tmp_path: Path) -> None:
    """It names the module of the model's class, of which PEFT imports transformers' own alone."""
    checkpoint = folded(text_checkpoint(tmp_path / "source", "llama"))
    model = _adapted(_loaded(checkpoint, way, "llama"), layers_to_transform=[1, 2])
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="allowlist"):
        peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", **way.options)
    if way is RUNTIME:
        allowed = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["prefold"])
        way.require(allowed.base_model.model)
    again = peft.PeftModel.from_pretrained(_loaded(checkpoint, way, "llama"), tmp_path / "adapter").eval()
    assert torch.equal(logits(again, tokens()), logits(model, tokens()))
