"""Small models of any architecture: a config class's own defaults, with every size shrunk by its name."""

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 97

# The first pattern that matches a setting's whole name says what it becomes, unless it is smaller already. The sizes
# fit together: 4 heads of 8 are the hidden size, 8 state-space heads of 8 are twice the hidden size.
_SIZES: tuple[tuple[str, int], ...] = (
    (r".*vocab_size.*", VOCABULARY),
    (r"pad_token_id", 0),
    (r"(bos|decoder_start)_token_id", 1),
    (r"(eos|sep)_token_id", 2),
    (r".*token_(id|index)", 3),
    (r"num_kv_shared_layers|first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_hash_layers", 0),
    (r"n_group|topk_group|mamba_n_?groups|n_groups|ngroups|num_expert_group|.*shared_experts", 1),
    (r".*num_key_value_heads.*|num_kv_heads|num_query_groups|index_n(um)?_heads|linear_num_key_heads", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r".*head_dim.*|.*headdim|mamba_d_head|dim_head|d_head|d_kv|attention_head_size|kv_channels", 8),
    (r"(.*_)?(heads|head|hidden_layers|layers|layer|blocks)", 4),
    (r".*experts_per_tok(en)?|.*top_?k|moe_k", 2),
    (r".*experts?|zero_expert_num", 4),
    (r".*_rank", 16),
    (r".*state_size|.*d_state|hidden_size_per_layer_input|index_topk.*|rotary_dim", 8),
    (r"mamba_d_ssm", 64),
    (r"(moe|expert|shared).*(intermediate|hidden)_size", 16),
    (r".*intermediate_size.*|.*ffn_dim|d_ff|dff|dim_ff|n_inner|d_inner|feed_forward_size|ffn_hidden_size", 48),
    (r".*chunk_size|.*chunk_length|.*window.*", 16),
    (r".*positions?(_embeddings)?|max_seq_len|n_ctx|context_length", 128),
    (r"(.*_)?hidden_size|n_embd|d_model|dim_model|(.*_)?emb(edding)?_(dim|size)|lru_width|.*embed_proj_dim", 32),
    (r"image_size", 32),
    (r"num_soft_tokens|.*position_embedding_size", 16),
    (r"ngram_vocab_size_base|encoder_hash_byte_group_vocab", VOCABULARY),
)
# Settings that some classes leave out of a config and then cannot do without.
_MISSING = {
    "head_dim": 8,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}
_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

# Architectures whose settings depend on each other, or are needed, in a way that no name tells.
_SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},  # an attention layer among the four; its cache asks for one
    "bamba": {"attn_layer_indices": [1, 3]},  # an attention layer among the four
    "blenderbot": {"encoder_layers": 4, "num_hidden_layers": 4},  # its cache counts the encoder's layers
    "cohere_compass_text": {  # its rotary embedding is built per kind of layer, and by default of no kind
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in set(_SLIDING)},
        "layer_types": _SLIDING,
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},  # has no default for the last
    "dots3_note_text": {"num_key_value_heads": 4},  # it has no groups of heads
    "gemma3n_text": {"layer_types": _SLIDING},  # the last layer is to be a full one
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},  # asked for by its own check
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},  # as many as layers
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},  # an attention layer among the four
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},  # an attention layer among the four
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},  # has no default
    "longcat_flash": {"head_dim": 8},  # not derived from its rotary part
    "mamba2": {"num_heads": 8},  # its only heads are those of the state space
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},  # an attention layer among the four
    "qwen4_exp_text": {  # its attention layers have an indexer, whose sizes have no default
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},  # a product of sizes is to be the sequence's length
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # rounds its heads' sizes up to a multiple of 64
    "xmod": {"default_language": "en_XX"},  # has no default
    "zamba": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},  # see zamba
}


def small_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """Return a small config of a model type that transformers knows."""
    config_class = CONFIG_MAPPING[model_type]
    config: PreTrainedConfig = config_class(**(_shrunk(config_class) | changes))
    return config


def _shrunk(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the settings in which a small config differs from the default one."""
    default = config_class().to_dict()
    sizes = {name: _size(name, value) for name, value in default.items()}
    settings: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if "qk_rope_head_dim" in default:
        settings = _latent(settings)
    for name, part in config_class.sub_configs.items():
        settings[name] = _part(part, default.get(name) or {})
    return settings | _SPECIAL.get(config_class.model_type, {})


def _latent(settings: dict[str, Any]) -> dict[str, Any]:
    """Let latent attention derive its heads' sizes; every one of its heads has keys of its own."""
    rest = {name: value for name, value in settings.items() if name not in ("head_dim", "qk_head_dim")}
    return rest | {"num_key_value_heads": settings.get("num_attention_heads", 4)}


def _part(config_class: type[Any], default: dict[str, Any]) -> dict[str, Any]:
    """Shrink a config inside another."""
    if config_class is AutoConfig:
        config_class = CONFIG_MAPPING[default["model_type"]]
    return {"model_type": config_class.model_type} | _shrunk(config_class)


def _size(name: str, value: Any) -> int | None:
    """Return what a setting becomes; None where it stays."""
    if value is None:
        return _MISSING.get(name)
    if isinstance(value, list) and value and name.endswith("_token_id"):
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    small = _by_name(name)
    return small if small is not None and small < value else None


def _by_name(name: str) -> int | None:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model in fp32 whose every parameter is random, gains and biases too: an identity would hide a mistake."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model
