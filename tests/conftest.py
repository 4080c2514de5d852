"""Builders that all tests share: small real models with random weights, saved as checkpoints."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from prefold.convert import FoldOptions, convert_checkpoint

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
torch.set_num_threads(1)
settings.register_profile("prefold", deadline=None)  # no test asserts a time
settings.load_profile("prefold")

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

_LATENT = _SERIAL | {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_LAYERED = _GROUPED | {
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_ALTERNATING = _LAYERED | {"laurel_rank": 16, "activation_sparsity_pattern": [0.0] * 3}
_SIDES = _PADDED | {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
}

# The architectures that tests cover, by transformers' own names; only tests know names.
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
    "mamba2": _PADDED
    | {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8, "num_heads": 8}
    | {"head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "jamba": _GROUPED
    | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4}
    | {"mamba_d_state": 8, "mamba_dt_rank": 16, "use_mamba_kernels": False},
    "qwen3_5_text": _GROUPED
    | {"num_hidden_layers": 4, "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT | {"n_group": 1, "topk_group": 1},
    "youtu": _LATENT | {"tie_word_embeddings": True},  # loading it sets the row of padding to zero
    "gemma3n_text": _ALTERNATING,
    "gemma4_text": _LAYERED,
    "modernbert": _SERIAL | {"cls_token_id": 1, "sep_token_id": 2},
    "t5": _PADDED
    | {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    | {"decoder_start_token_id": 0},
    "gpt2": _SPECIAL | {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "opt": _SERIAL | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bert": _SERIAL,
    "roberta": _SERIAL,
    "longformer": _SERIAL | {"attention_window": 16},
    "squeezebert": _SERIAL | {"embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1},
    "ibert": _SERIAL,
    "bart": _SIDES | {"max_position_embeddings": 128, "forced_eos_token_id": None},
    "whisper": _SIDES | {"max_target_positions": 128, "max_source_positions": 16, "num_mel_bins": 16},
}  # fmt: skip
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
_BELOW = {"image_token_id": 80, "boi_token_id": 81, "eoi_token_id": 82, "audio_token_id": 83}
# Classes as they are published, which take images and sounds, too: they fold with ``text_only``. The vocabulary of
# Gemma 3n ends with tokens that its towers embed, and that its second look-up has no rows for.
MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma4": {"text_config": _LAYERED, "vision_config": _TOWER | {"intermediate_size": 48}, "audio_config": None}
    | _BELOW
    | {"video_token_id": 84},
    "gemma3n": {
        "text_config": _ALTERNATING | {"vocab_size_per_layer_input": 85},
        "vision_config": {"architecture": "test_resnet", "hidden_size": 32, "vocab_size": 4, "vocab_offset": 85},
        "audio_config": {"hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 4}
        | {"vocab_size": 8, "vocab_offset": 89, "input_feat_size": 16, "sscp_conv_channel_size": [8, 4]},
    }
    | _BELOW
    | {"boa_token_id": 86, "eoa_token_id": 90},
}  # fmt: skip
PARALLEL = ("gpt_neox", "gptj", "phi", "falcon", "cohere")
# Their first norm sees a sum of look-ups, so that what they say is close to their source's and not equal.
SUMS = ("gpt2", "opt", "bert", "roberta", "longformer", "squeezebert", "ibert", "bart", "whisper")
_MASKED = ("modernbert", "bert", "roberta", "longformer", "squeezebert", "ibert")
_AUTO_CLASSES: dict[str, Any] = dict.fromkeys(_MASKED, AutoModelForMaskedLM)
_AUTO_CLASSES |= dict.fromkeys(("t5", "bart"), AutoModelForSeq2SeqLM) | {"whisper": AutoModelForSpeechSeq2Seq}
# Causal language models whose rows say what their source says, to the bit.
EXACT = tuple(name for name in SHAPES if name not in SUMS and name not in _AUTO_CLASSES)


def auto_class(model_type: str) -> Any:
    """Return the class that a user loads a model type with."""
    return _AUTO_CLASSES.get(model_type, AutoModelForCausalLM)


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return the config of a small model."""
    return AutoConfig.for_model(model_type, **((SHAPES | MULTIMODAL)[model_type] | changes))


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a model whose every parameter is random, gains and biases too: an identity would hide a mistake.

    What a model does not train stays: fixed positions are computed again when it is loaded.
    """
    torch.manual_seed(0)
    model = auto_class(config.model_type).from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def exhaustive(*values: Any) -> Any:
    """Return parameters of a test that repeats what others prove: left out by ``make test``."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def some(values: Iterable[Any], *few: Any) -> list[Any]:
    """Return parameters of a test of which ``make test`` runs a ``few``."""
    return [value if value in few else exhaustive(value) for value in values]


def asked_for(request: pytest.FixtureRequest, parameter: str) -> list[Any]:
    """Return the values of a parameter in the tests of a module that are to run: a fixture makes no others."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    values = [item.callspec.params[parameter] for item in items if parameter in item.callspec.params]
    return list(dict.fromkeys(values))


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Return what every file of a folder holds, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fold_options(**options: Any) -> FoldOptions:
    """Return options whose types may be torch's."""
    named = {name: str(each).removeprefix("torch.") for name, each in options.items() if isinstance(each, torch.dtype)}
    return FoldOptions(**options | named)


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
        return convert_checkpoint(str(source), tmp_path / name, options=fold_options(**options)).out

    return make


def load(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Load a checkpoint in its own dtype, by the runtime once it is imported, else by the module in the folder."""
    config = json.loads((folder / "config.json").read_text())
    has_trust = "prefold.runtime" not in sys.modules or "AutoConfig" in config.get("auto_map", {})
    options = {"trust_remote_code": has_trust, "dtype": "auto"} | kwargs
    return auto_class(config["model_type"]).from_pretrained(folder, **options).eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Return random ordinary tokens, ``[batch, length]``."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
