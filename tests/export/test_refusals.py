"""Exports that are refused, each in one line that tells what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prefold.common.errors import PrefoldError, UsageError
from prefold.convert import BrokenCheckpoint, OutputExists, UnsupportedModel
from prefold.export import MissingRuntime, NotExported, export_checkpoint
from prefold.export.errors import EXTRAS, exporter_code, require_runtime
from tests.conftest import Checkpoint
from tests.runtime.placing import flip_byte

installed = pytest.mark.skipif("not __import__('importlib').util.find_spec('onnxruntime')", reason="no prefold[onnx]")
Fold = Callable[..., Path]


def refusal(kind: type[PrefoldError], *arguments: object, **options: object) -> str:
    with pytest.raises(kind) as refused:
        export_checkpoint(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(EXTRAS, "onnx", ("torch", "no_such_package"))
    with pytest.raises(MissingRuntime) as refused:
        require_runtime("onnx")
    assert str(refused.value) == "--to onnx: no_such_package not installed: pip install 'prefold[onnx]'"


@installed
def test_a_fold_of_another_type(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    folded = fold(checkpoint(dtype=torch.bfloat16))
    told = refusal(UsageError, folded, tmp_path / "out")
    assert told.endswith("fold it so first: prefold convert source OUT --dtype float32")
    assert not (tmp_path / "out").exists()


@installed
def test_a_type_that_the_runtime_does_not_compute_in(tmp_path: Path):
    told = refusal(UsageError, tmp_path, tmp_path / "out", dtype="bfloat16")
    assert told == "--dtype bfloat16: onnx computes in float32 and float16"


def test_too_short_a_context(tmp_path: Path):
    assert refusal(UsageError, tmp_path, tmp_path / "out", context=16) == "--context 16: a proof takes 32 tokens"


@installed
def test_a_context_beyond_the_models_positions(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    source = checkpoint()
    told = refusal(UsageError, fold(source), tmp_path / "out", source=str(source), context=1_000_000)
    assert told == "--context 1000000: the model has 128 positions"
    assert not (tmp_path / "out").exists()


@installed
def test_a_source_that_is_none_of_the_fold(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    folded, other = fold(checkpoint()), checkpoint("gpt_neox")
    told = refusal(UsageError, folded, tmp_path / "out", source=str(folded))
    assert told.endswith("a folded checkpoint: the proof needs the source that it was made of")
    told = refusal(UsageError, folded, tmp_path / "out", source=str(other))
    assert told.endswith("not the source of the fold: another model_type")


@installed
def test_a_table_that_was_changed(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    source = checkpoint()
    folded = fold(source)
    flip_byte(folded / "prefold_table.safetensors")
    told = refusal(BrokenCheckpoint, folded, tmp_path / "out", source=str(source))
    assert told.endswith("not the table that was written (its hash differs)")


@installed
def test_what_is_no_fold_or_lies_elsewhere(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    source = checkpoint()
    assert "no folded checkpoint" in refusal(UsageError, source, tmp_path / "out")
    assert "no such folder" in refusal(UsageError, tmp_path / "nowhere", tmp_path / "out")
    assert "pass it as --source" in refusal(UsageError, fold(source), tmp_path / "out")
    assert "exists already" in refusal(OutputExists, source, source, source=str(source))


@installed
def test_an_encoder(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    assert refusal(UnsupportedModel, fold(checkpoint("bert")), tmp_path / "out").startswith("no decoder")


@installed
def test_a_model_without_a_cache_of_keys_and_values(checkpoint: Checkpoint, fold: Fold, tmp_path: Path):
    source = checkpoint("mamba")
    assert "cache" in refusal(NotExported, fold(source), tmp_path / "out", source=str(source))
    assert {path.name for path in tmp_path.iterdir()} == {"source", "folded"}


def test_an_error_of_an_exporter_is_one_line():
    with pytest.raises(NotExported, match=r"^no operator: ValueError: one two$"), exporter_code("no operator"):
        _raise_from_transformers()


def _raise_from_transformers() -> None:
    """Raise as a library's code does, by the name of its module."""
    exec("raise ValueError('one\\ntwo')", {"__name__": "transformers.exporters"})
