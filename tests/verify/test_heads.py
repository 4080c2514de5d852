"""Folds of models that end in another head, or take more than text, proved as those of language models are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from prefold.convert import FoldOptions, UnsupportedModel, convert_checkpoint
from prefold.verify import require_verified
from tests.conftest import exhaustive, small_config

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = _SMALL | {"image_size": 28, "patch_size": 14}
_TEXT = _SMALL | {"vocab_size": 97, "num_key_value_heads": 2, "max_position_embeddings": 128}


def _small(name: str, model_type: str, **changes: Any) -> PreTrainedModel:
    return getattr(transformers, name)(small_config(model_type, **changes))


def _vision(name: str, config: str, **changes: Any) -> PreTrainedModel:
    text = transformers.Qwen2Config(**_TEXT, tie_word_embeddings=False)
    return getattr(transformers, name)(getattr(transformers, config)(text_config=text, **changes))


HEADS: dict[str, Callable[[], PreTrainedModel]] = {
    "one label a text": lambda: _small("BertForSequenceClassification", "bert"),
    "one label a token": lambda: _small("LlamaForTokenClassification", "llama"),
    "one logit a token": lambda: transformers.ElectraForPreTraining(
        transformers.ElectraConfig(embedding_size=32, **_TEXT | {"num_attention_heads": 4})
    ),
    "two answers": lambda: _small("BertForQuestionAnswering", "bert"),
    "two heads": lambda: _small("BertForPreTraining", "bert"),
    "decoder's label": lambda: _small("GPT2ForSequenceClassification", "gpt2", pad_token_id=0),
    "encoder of T5": lambda: _small("T5EncoderModel", "t5"),
}
IMAGES: dict[str, Callable[[], PreTrainedModel]] = {
    "llava": lambda: _vision(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        vision_config=transformers.CLIPVisionConfig(**_VISION),
        image_token_index=96,
        tie_word_embeddings=False,
    ),
    "internvl": lambda: _vision(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        vision_config=_VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=96,
    ),
    "mistral3": lambda: _vision(
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        vision_config=transformers.PixtralVisionConfig(**_VISION),
        image_token_index=96,
    ),
}


def _saved(make: Callable[[], PreTrainedModel], folder: Path) -> str:
    torch.manual_seed(0)
    make().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["one label a text", "one logit a token", *map(exhaustive, [*HEADS])])
def test_a_head_of_any_kind(name: str, tmp_path: Path):
    source = _saved(HEADS[name], tmp_path / "source")
    folded = convert_checkpoint(source, tmp_path / "out", check=require_verified())
    assert folded.verification.passed


@pytest.mark.parametrize("name", ["llava", *map(exhaustive, [*IMAGES])])
def test_images_and_text(name: str, tmp_path: Path):
    source = _saved(IMAGES[name], tmp_path / "source")
    with pytest.raises(UnsupportedModel, match="--text-only folds it for token ids alone"):
        convert_checkpoint(source, tmp_path / "out")
    options = FoldOptions(text_only=True)
    folded = convert_checkpoint(source, tmp_path / "out", options=options, check=require_verified()).out
    ids = torch.arange(4, 24)[None]
    auto = transformers.AutoModelForImageTextToText
    models = [auto.from_pretrained(each, trust_remote_code=True).eval() for each in (source, folded)]
    with torch.no_grad():
        one, other = (model(input_ids=ids).logits for model in models)
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_a_model_without_tokens(tmp_path: Path):
    make = lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION))  # noqa: E731
    with pytest.raises(UnsupportedModel, match="0 ordinary tokens"):
        convert_checkpoint(_saved(make, tmp_path / "source"), tmp_path / "out")
