"""Small checkpoints that vLLM's kernels accept: heads of 32 values, and enough of them for two ranks."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from prefold.convert import FoldOptions, convert_checkpoint
from tests.conftest import random_model

VOCABULARY = 512
_SERIAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = _SERIAL | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 32}
_PLAIN = {"vocab_size": VOCABULARY, "hidden_size": 128, "n_layer": 3, "n_head": 4}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1}
# The sizes that vLLM's kernel of latent attention has.
_LATENT = _SERIAL | _EXPERTS | {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "q_lora_rank": 64}
_LATENT |= {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 1}
_ERNIE |= {"moe_layer_start_index": 1, "moe_layer_end_index": 2, "num_nextn_predict_layers": 1}
_FALCON = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}

# By what a test calls them: transformers' type, and the settings of its config.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama_tied": ("llama", _GROUPED | {"tie_word_embeddings": True}),
    "llama_one_kv_head": ("llama", _GROUPED | {"num_key_value_heads": 1}),
    "draft": ("llama", _GROUPED | {"num_hidden_layers": 1}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _HEADS),
    "gemma2": ("gemma2", _HEADS),
    "gemma3": ("gemma3_text", _HEADS),
    "cohere": ("cohere", _GROUPED),
    "gpt_neox": ("gpt_neox", _SERIAL),
    "phi3": ("phi3", _GROUPED),
    "mixtral": ("mixtral", _GROUPED | {"num_local_experts": 4}),
    "qwen3_moe": (
        "qwen3_moe",
        _HEADS
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1},
    ),
    "olmo2": ("olmo2", _GROUPED),
    "granite": ("granite", _GROUPED | {"embedding_multiplier": 6.0}),
    "bloom": ("bloom", _PLAIN),
    "gptj": ("gptj", {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 3, "n_head": 4, "rotary_dim": 16}),
    "falcon": ("falcon", _FALCON | {"multi_query": True}),
    "falcon_new": ("falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "cohere2_moe": (
        "cohere2_moe",
        _HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "sliding_window": 64},
    ),
    "deepseek_v3": ("deepseek_v3", _LATENT | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}),
    "glm4_moe": ("glm4_moe", _HEADS | _EXPERTS | {"num_nextn_predict_layers": 1}),
    "ernie4_5_moe": ("ernie4_5_moe", _HEADS | _ERNIE),
    "gpt2": ("gpt2", {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4}),
}  # fmt: skip

# Where vLLM fuses what the deepest cut leaves out.
CUTS = {"deepseek_v3": "self_attn.q_a_layernorm"}


def save(shape: tuple[str, dict[str, Any]], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a model with random weights and return its folder."""
    model_type, settings = shape
    random_model(AutoConfig.for_model(model_type, **settings), dtype).save_pretrained(folder)
    return folder


def fold(source: Path, out: Path, **options: Any) -> Path:
    """Fold a checkpoint and return the folded folder."""
    return convert_checkpoint(str(source), out, options=FoldOptions(**options)).out


def prompts(count: int = 32) -> list[list[int]]:
    """Return prompts of 3 to 62 random tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (3 + 7 * i % 60,), generator=generator).tolist() for i in range(count)]
