"""A sample of what ``docs/coverage.md`` tells: types that no other test folds."""

from pathlib import Path

import pytest
import torch

from benchmarks.coverage import CHECKS, TYPES, measure, measure_apart
from benchmarks.coverage_page import page
from benchmarks.small import small_config

SAMPLE = ["olmoe", "qwen3_moe", "granite", "nemotron", "recurrent_gemma", "jamba", "lfm2", "deepseek_v3"]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_type_folds_exactly(model_type: str, tmp_path: Path):
    torch.set_num_threads(1)
    result = measure(model_type, tmp_path)
    assert (result.result, result.reason) == ("exact", "")
    assert result.differences.keys() == {"rows", *CHECKS}
    assert max(result.differences.values()) < 1e-5
    assert result.columns
    assert 0 < result.eliminated < 1


def test_refusal_is_told_with_its_reason(tmp_path: Path):
    result = measure("fuyu", tmp_path)
    assert result.result == "refused"
    assert "takes more than text" in result.reason


def test_type_that_hangs_is_ended():
    assert measure_apart("llama", seconds=0).reason == "did not end within 0 seconds"


@pytest.mark.parametrize("model_type", SAMPLE)
def test_small_config_is_small(model_type: str):
    config = small_config(model_type)
    assert config.model_type == model_type
    assert config.vocab_size == 97
    assert config.hidden_size == 32


def test_page_counts_and_explains():
    told = {"reason": "", "columns": [], "eliminated": 0.0, "differences": {}, "skipped": {}}
    text = page(
        [
            told | {"model_type": "a", "result": "exact", "columns": ["q_proj"], "eliminated": 0.25},
            told | {"model_type": "b", "result": "refused", "reason": "why | not"},
        ]
    )
    assert "| 2 | 2 | 1 | 1 | 0 | 0 | 1 | 0 |" in text
    assert "| `a` | exact |  | 25 % | `q_proj` |" in text
    assert "refused: why \\| not" in text


def test_every_causal_type_is_asked_for():
    assert {"llama", "gpt2", "mamba", *SAMPLE} <= set(TYPES)
