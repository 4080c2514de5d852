"""Small models of any architecture: a config class's own defaults, with every size shrunk by its name."""

import re
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from benchmarks.small_special import SPECIAL

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
    (r"(.*_)?(heads|head|hidden_layers|layers|layer|blocks|per_block)", 4),
    (r".*experts_per_tok(en)?|.*top_?k|moe_k", 2),
    (r".*experts?|zero_expert_num", 4),
    (r".*_rank", 16),
    (r".*state_size|.*d_state|hidden_size_per_layer_input|index_topk.*|rotary_dim", 8),
    (r"mamba_d_ssm", 64),
    (r"(moe|expert|shared).*(intermediate|hidden)_size", 16),
    (r".*intermediate_size.*|.*ffn_dim|d_ff|dff|dim_ff|n_inner|d_inner|feed_forward_size|ffn_hidden_size", 48),
    (r"chunk_.*_context", 4),
    (r".*chunk_size|.*chunk_length|.*window.*", 16),
    (r".*positions?(_embeddings)?|max_seq_len|n_ctx|context_length", 128),
    (
        r"(.*_)?hidden_size(_global)?|n_embd|d_(model|latents)|dim_model|.*embed_proj_dim|(.*_)?emb(edding)?_(dim|size)",
        32,
    ),
    (r"lru_width|intra_bottleneck_size", 32),
    (r"(hidden_|adapter_(in|out)_)?dim|encoder_dim|adapter_input_size", 32),
    (r"image_size", 32),
    (r"num_soft_tokens|.*position_embedding_size|num_latents|num_mel_bins", 16),
    (r"ngram_vocab_size_base|encoder_hash_byte_group_vocab", VOCABULARY),
)
# Settings that some classes leave out of a config and then cannot do without.
_MISSING = {
    "vocab_size": VOCABULARY,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}
# What a model that is asked for by its task is, where its config can say so.
_TASKS: dict[str, dict[str, Any]] = {
    "causal": {"is_decoder": True, "causal": True},
    "masked": {"is_decoder": False, "causal": False},
    "seq2seq": {},
}


def small_config(model_type: str, task: str = "causal", **changes: Any) -> PreTrainedConfig:
    """Return a small config of a model type that transformers knows, for a task: causal, masked or seq2seq."""
    config_class = CONFIG_MAPPING[model_type]
    settings = _shrunk(config_class)
    role = {name: value for name, value in _TASKS[task].items() if name in _default(config_class)}
    config: PreTrainedConfig = config_class(**(settings | role | changes))
    return config


def _default(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return a class's own settings; a few classes do not accept their own without a special one."""
    try:
        default: dict[str, Any] = config_class().to_dict()
    except (ValueError, StrictDataclassError):
        default = config_class(**SPECIAL.get(config_class.model_type, {})).to_dict()
    return default


def _shrunk(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the settings in which a small config differs from the default one."""
    default = _default(config_class)
    sizes = {name: _size(name, value) for name, value in default.items()}
    settings: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if "qk_rope_head_dim" in default:
        settings = _latent(settings)
    for name, part in config_class.sub_configs.items():
        settings[name] = _part(part, default.get(name) or {})
    return _merged(settings, SPECIAL.get(config_class.model_type, {}))


def _merged(settings: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """Add special settings; those of a part are added to the part's."""
    parts = {name for name, value in settings.items() if isinstance(value, dict) and "model_type" in value}
    return settings | {name: settings[name] | value if name in parts else value for name, value in special.items()}


def _latent(settings: dict[str, Any]) -> dict[str, Any]:
    """Let latent attention derive its heads' sizes; every one of its heads has keys of its own."""
    rest = {name: value for name, value in settings.items() if name not in ("head_dim", "qk_head_dim")}
    return rest | {"num_key_value_heads": settings.get("num_attention_heads", 4)}


def _part(config_class: type[Any], default: dict[str, Any]) -> dict[str, Any]:
    """Shrink a config inside another, and keep what the other one says that it is."""
    if config_class is AutoConfig:
        config_class = CONFIG_MAPPING[default["model_type"]]
    own = _default(config_class)
    role = {name: value for name, value in default.items() if isinstance(value, bool) and value != own.get(name)}
    return {"model_type": config_class.model_type} | role | _shrunk(config_class)


def _size(name: str, value: Any) -> int | None:
    """Return what a setting becomes; None where it stays."""
    if value is None:
        return _MISSING.get(name)
    if isinstance(value, list) and value and name.endswith("_token_id"):
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    small = _by_name(name)
    smaller = small is not None and (small < value or name == "vocab_size")
    return small if smaller else None


def _by_name(name: str) -> int | None:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)


def random_model(config: PreTrainedConfig, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """Build a model in fp32 whose every parameter is random, gains and biases too: an identity would hide a mistake.

    What a model does not train stays: fixed positions are computed again when it is loaded.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = _built(config, auto_class).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def _built(config: PreTrainedConfig, auto_class: Any) -> Any:
    """Build what an auto class takes for a config, from the part of the config that is meant for it."""
    chosen = auto_class._model_mapping.get(type(config), None)
    wanted = getattr(chosen, "config_class", type(config))
    parts = [getattr(config, name) for name, part in config.sub_configs.items() if part is wanted]
    if parts:
        return chosen._from_config(parts[0], dtype=torch.float32)
    return auto_class.from_config(config, dtype=torch.float32)
