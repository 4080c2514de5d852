"""transformers' own ways to a class: auto classes, the class itself, and a config alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import auto_class, some, tokens
from tests.runtime.clients.checkpoints import folded, text_checkpoint
from tests.runtime.clients.ways import RUNTIME, STOCK, Way

TYPES = some(["gpt_neox", "gpt2", "bert", "t5"], "gpt_neox", "bert")


def _own_class(checkpoint: Path) -> type[PreTrainedModel]:
    """Return the class that programs take which do not ask an auto class: the one of that name in transformers."""
    name = AutoConfig.from_pretrained(checkpoint).architectures[0]
    return getattr(transformers, name)  # type: ignore[no-any-return]


def test_config_is_of_the_sources_class(way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", "gpt_neox")
    configs = [AutoConfig.from_pretrained(folder, **way.options) for folder in (source, folded(source))]
    assert type(configs[0]) is type(configs[1])
    assert configs[0].architectures == configs[1].architectures


@pytest.mark.parametrize("model_type", TYPES)
def test_auto_class_takes_the_class_of_the_sources_name(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    _require_same_class(auto_class(model_type), source, folded(source), way)


@pytest.mark.parametrize("model_type", some(["gpt_neox", "gpt2", "bert", "bart"], "gpt_neox", "bert"))
def test_auto_class_of_base_models_takes_the_sources(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    _require_same_class(AutoModel, source, folded(source), way)


def _require_same_class(auto: Any, source: Path, fold: Path, way: Way) -> None:
    expected, model = auto.from_pretrained(source), auto.from_pretrained(fold, **way.options)
    STOCK.require(expected)
    way.require(model)
    assert type(model).__name__ == type(expected).__name__
    assert isinstance(model, type(expected))


def test_base_model_that_is_no_part_of_the_source_is_refused(tmp_path: Path) -> None:
    """A T5 with a head has the parts of the one without side by side with the head."""
    fold = folded(text_checkpoint(tmp_path / "source", "t5"))
    with pytest.raises(ValueError, match="folded as T5ForConditionalGeneration: it cannot be loaded as T5Model"):
        AutoModel.from_pretrained(fold)


@pytest.mark.parametrize("model_type", TYPES)
def test_fold_that_is_saved_again_is_found_as_before(model_type: str, way: Way, tmp_path: Path) -> None:
    fold = folded(text_checkpoint(tmp_path / "source", model_type))
    auto_class(model_type).from_pretrained(fold, **way.options).save_pretrained(tmp_path / "again")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (fold, tmp_path / "again"))
    for key in ("model_type", "architectures", "auto_map"):
        assert after[key] == before[key]


def test_config_alone_builds_the_folded_class(way: Way, tmp_path: Path) -> None:
    """Programs that count memory do so, before they load weights."""
    fold = folded(text_checkpoint(tmp_path / "source", "llama"))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(fold, **way.options)
        model = AutoModelForCausalLM.from_config(config, **way.options)
    way.require(model)
    assert model.state_dict().keys() == AutoModelForCausalLM.from_pretrained(fold, **way.options).state_dict().keys()


@pytest.mark.parametrize("model_type", TYPES)
def test_transformers_own_class_loads_a_fold_once_the_runtime_is_imported(model_type: str, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    fold = folded(source)
    model = _own_class(fold).from_pretrained(fold)
    RUNTIME.require(model)
    given = {"input_ids": tokens()} | ({"decoder_input_ids": tokens()} if model_type == "t5" else {})
    expected = _own_class(source).from_pretrained(source)(**given).logits
    torch.testing.assert_close(model(**given).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("asked", ["auto class", "own class", "own class, trusted"])
def test_program_that_does_not_know_of_folds_stops(model_type: str, asked: str, stock: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    fold = folded(source)
    kind = auto_class(model_type) if asked == "auto class" else _own_class(fold)
    stock.require(kind.from_pretrained(source))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(fold, trust_remote_code="trusted" in asked)
