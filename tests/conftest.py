"""Builders that all tests share: small real models with random weights, saved as checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from prefold.convert import Options, convert_checkpoint

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)

VOCABULARY = 97

_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_PADDED = _SPECIAL | {"pad_token_id": 0}
_SERIAL = _PADDED | {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GROUPED = _SERIAL | {"num_key_value_heads": 2}

# The architectures that this issue promises, by transformers' own names; only tests know names.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "mixtral": _GROUPED | {"num_local_experts": 4},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gemma2": _GROUPED | {"head_dim": 8},
    "gemma3_text": _GROUPED | {"head_dim": 8},
    "phi3": _GROUPED,
    "gpt_neox": _SERIAL,
    "gptj": _SPECIAL
    | {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "phi": _SERIAL,
    "falcon": _SPECIAL
    | {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "cohere": _GROUPED,
    "stablelm": _GROUPED,
    "olmo2": _GROUPED,
    "bloom": _PADDED | {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128},
    "mamba": _PADDED | {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},
}  # fmt: skip
PARALLEL = ("gpt_neox", "gptj", "phi", "falcon", "cohere")


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return the config of a small model."""
    return AutoConfig.for_model(model_type, **(SHAPES[model_type] | changes))


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model whose every parameter is random, gains and biases too: an identity would hide a mistake."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


Checkpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Return a function that saves a small random model and returns its folder."""

    def make(
        model_type: str = "llama", dtype: torch.dtype = torch.float32, name: str = "source", **changes: Any
    ) -> Path:
        save = {key: changes.pop(key) for key in ("max_shard_size",) if key in changes}
        folder = tmp_path / name
        random_model(small_config(model_type, **changes), dtype).save_pretrained(folder, **save)
        return folder

    return make


@pytest.fixture
def fold(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that folds a checkpoint and returns the folded folder."""

    def make(source: Path, name: str = "folded", **options: Any) -> Path:
        return convert_checkpoint(str(source), tmp_path / name, options=Options(**options)).out

    return make


def load(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Load a checkpoint as a user does, in its own dtype, running the module in its folder if it brings one."""
    return AutoModelForCausalLM.from_pretrained(
        folder, **({"trust_remote_code": True, "dtype": "auto"} | kwargs)
    ).eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Return random ordinary tokens, ``[batch, length]``."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
