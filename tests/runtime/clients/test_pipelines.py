"""transformers' pipelines choose by type and class, and so the same for a fold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, pipeline

from tests.runtime.clients.checkpoints import folded, headed_checkpoint, speech_checkpoint, text_checkpoint, whisper
from tests.runtime.clients.ways import RUNTIME, STOCK, Way, errors_logged

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1}
SOUND = np.sin(np.arange(16_000) / 20).astype("float32")


def _asked(task: str, checkpoint: Path, way: Way, given: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a pipeline chose, what it answered, and what was logged as an error."""
    with errors_logged() as errors:
        asked = pipeline(task, model=str(checkpoint), device="cpu", **way.options)
        answer = asked(given, **options)
    way.require(asked.model)
    parts = [asked.model, asked.tokenizer, asked.feature_extractor, asked.processor]
    chosen = [type(part).__name__ for part in parts]
    return asked, (getattr(asked, "type", None), chosen, errors), answer


def _require_same(task: str, source: Path, way: Way, given: Any, **options: Any) -> tuple[Any, Any]:
    """Assert that a pipeline chooses the same for both; returns the source's pipeline and the answers of both."""
    asked, chosen, answer = _asked(task, source, STOCK, given, options)
    _, as_folded, of_folded = _asked(task, folded(source), way, given, options)
    assert as_folded == chosen
    return asked, (answer, of_folded)


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2"])
def test_text_generation(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    options = GREEDY | {"repetition_penalty": 3.0}
    _, (expected, answer) = _require_same("text-generation", source, way, ["to be or", "not"], **options)
    assert answer == expected
    assert len(expected[0][0]["generated_text"].split()) > 4


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_fill_mask(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    _, (expected, answer) = _require_same("fill-mask", source, way, "to <mask> or not")
    assert [each["token_str"] for each in answer] == [each["token_str"] for each in expected]
    assert [each["score"] for each in answer] == pytest.approx([each["score"] for each in expected], rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "bart"])
def test_feature_extraction(model_type: str, way: Way, tmp_path: Path) -> None:
    source = text_checkpoint(tmp_path / "source", model_type)
    _, (expected, answer) = _require_same("feature-extraction", source, way, "to be or not", return_tensors=True)
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "model_type", "auto"),
    [
        ("text-classification", "bert", AutoModelForSequenceClassification),
        ("text-classification", "llama", AutoModelForSequenceClassification),
        ("token-classification", "roberta", AutoModelForTokenClassification),
    ],
)
def test_classification(task: str, model_type: str, auto: Any, way: Way, tmp_path: Path) -> None:
    source = headed_checkpoint(tmp_path / "source", model_type, auto)
    _, (expected, answer) = _require_same(task, source, way, "to be or not")
    assert expected
    for one, other in zip(expected, answer, strict=True):
        assert other == one | {"score": pytest.approx(one["score"], rel=1e-5)}


@pytest.mark.parametrize("model_type", ["whisper", "moonshine", "speech_to_text"])
def test_speech_recognition(model_type: str, way: Way, tmp_path: Path) -> None:
    make = {"whisper": whisper}.get(model_type, lambda folder: speech_checkpoint(folder, model_type))
    source = make(tmp_path / "source")
    asked, (expected, answer) = _require_same(
        "automatic-speech-recognition", source, way, SOUND, generate_kwargs=GREEDY
    )
    assert asked.type == ("seq2seq_whisper" if model_type == "whisper" else "seq2seq")
    assert answer == expected
    assert expected["text"]


def test_assistant_is_named_by_its_folder(tmp_path: Path) -> None:
    """A pipeline hands no option on to its assistant, which so takes the runtime."""
    source = text_checkpoint(tmp_path / "source", "llama")
    draft = folded(text_checkpoint(tmp_path / "draft", "llama", num_hidden_layers=1))
    alone, assisted = (
        pipeline("text-generation", model=str(source), assistant_model=assistant, device="cpu")
        for assistant in (None, str(draft))
    )
    RUNTIME.require(assisted.assistant_model)
    assert assisted("to be or", **GREEDY) == alone("to be or", **GREEDY)
