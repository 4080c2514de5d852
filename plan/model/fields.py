"""The fields of a ``config.json``: those in the file, and those that the class of transformers fills in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefold.common.errors import UsageError

# Each by its usual name: the names that configs have for it, a decoder's before those that its encoder may mean.
NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "num_hidden_layers": (
        "decoder_layers",
        "num_decoder_layers",
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
    ),
    "num_attention_heads": (
        "decoder_attention_heads",
        "num_decoder_attention_heads",
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
    ),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads"),
    "max_position_embeddings": (
        "max_target_positions",
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_sequence_length",
        "max_seq_len",
        "max_seq_length",
    ),
    "head_dim": ("head_dim", "d_kv", "attention_head_dim", "kv_channels"),
    "intermediate_size": (
        "decoder_ffn_dim",
        "intermediate_size_mlp",
        "intermediate_size",
        "n_inner",
        "ffn_dim",
        "ffn_hidden_size",
        "d_ff",
        "d_inner",
        "dim_ff",
    ),
    "expansion_ratio": ("expansion_ratio", "intermediate_multiple_size"),
    "parallel": ("use_parallel_residual", "parallel_attn"),
    "gated": ("is_gated_act",),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj"),
    "num_experts": ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    "n_shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "shared_expert_intermediate_size": (
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "moe_shared_expert_intermediate_size",
    ),
    "plain_intermediate_size": ("intermediate_size",),
    "first_k_dense_replace": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "conv_kernel": ("mamba_d_conv", "conv_kernel"),
    "mamba_expand": ("mamba_expand", "expand"),
    "mamba_groups": ("mamba_n_groups", "n_groups"),
    "mamba_head_dim": ("mamba_head_dim", "mamba_d_head", "head_dim"),
    "mamba_inner": ("mamba_d_ssm",),
    "mamba_num_heads": ("mamba_num_heads", "mamba_n_heads", "num_heads"),
    "state_size": ("mamba_d_state", "ssm_state_size", "state_size"),
    "sliding_window": ("sliding_window", "local_attention"),
    "time_step_rank": ("mamba_dt_rank", "time_step_rank"),
    "layer_types": ("layer_types", "layers_block_type", "block_types"),
    "decoder_sparse_step": ("decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step"),
}
# How wide and deep a model is must be told: a class has a size for everything, that of the first model of its kind.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
_NESTED = ("text_config", "language_config", "llm_config", "decoder")
_INLINE = ("attn_config", "ffn_config")
_TIED = "tie_word_embeddings"
_KINDS = "layer_types"


@dataclass(frozen=True)
class Fields:
    """The fields of a decoder's config.

    Attributes:
        told: of the file.
        filled: of transformers' class, with its defaults; empty without a class.
        matrices: that the class names in its plan for tensor parallelism, as ``layers.*.mlp.up_proj``.
        kind: the class's name; empty without one.
        made: the config as its class has it; None without one.
    """

    told: Mapping[str, Any]
    filled: Mapping[str, Any]
    matrices: tuple[str, ...] = ()
    kind: str = ""
    made: Any = None

    def get(self, field: str) -> Any:
        """Return a field, by any of its names, as the file has it or else as transformers does; None for neither."""
        found = _first(self.told, field)
        return found if found is not None else _first(self.filled, field)

    def told_size(self, field: str) -> int:
        """Return a field that counts something, as the file alone has it; 0 without it, and for what counts nothing."""
        found = _first(self.told, field)
        return found if _is_size(found) else 0

    def has(self, field: str) -> bool:
        """Return whether there is such a field, be it null."""
        return any(name in known for name in NAMES.get(field, (field,)) for known in (self.told, self.filled))

    def size(self, field: str) -> int:
        """Return a field that counts something, 0 without it; ``UsageError`` where it is not a whole number."""
        found = self.get(field)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 0):
            name = next((name for name in NAMES.get(field, ()) if self.told.get(name) is not None), field)
            raise UsageError(f"{name}: {found!r} is not a whole number")
        return found or 0


def _require_sizes(told: Mapping[str, Any]) -> None:
    """Raise ``UsageError``, by the names in the file, for sizes that are no positive whole numbers."""
    names = [name for field in (*_SIZES, "num_key_value_heads") for name in NAMES.get(field, (field,)) if name in told]
    wrong = [name for name in names if isinstance(told[name], int | float) and not _is_size(told[name])]
    if wrong:
        raise UsageError("\n".join(f"{name}: {told[name]!r} is not a positive whole number" for name in wrong))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _first(known: Mapping[str, Any], field: str) -> Any:
    return next((known[name] for name in NAMES.get(field, (field,)) if known.get(name) is not None), None)


def read_fields(config: Mapping[str, Any]) -> Fields:
    """Return the fields of the config's decoder, perhaps nested; ``UsageError`` where its class refuses it."""
    decoder = next((config[name] for name in _NESTED if isinstance(config.get(name), Mapping)), config)
    told = {**decoder, **({_TIED: config[_TIED]} if _TIED in config else {})}
    _require_sizes(told)
    made = _as_transformers_reads_it(told)
    if made is None:
        return Fields(_flat(told), {})
    filled, plan = _flat(made.to_dict()), type(made).base_model_tp_plan or {}
    filled |= {_KINDS: list(kinds)} if (kinds := getattr(made, _KINDS, None)) else {}
    own = {
        name for field in _SIZES for name in NAMES.get(field, (field,)) if getattr(type(made), name, None) is not None
    }
    return Fields(
        _flat(told), {k: v for k, v in filled.items() if k not in own}, tuple(plan), type(made).__name__, made
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    inline = {name: value for each in _INLINE for name, value in (config.get(each) or {}).items()}
    return {**inline, **config}


def _as_transformers_reads_it(config: Mapping[str, Any]) -> Any:
    """Return the config as transformers makes it; None without transformers, or where it has no such class."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING
    except ImportError:
        return None
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return None
    try:
        return CONFIG_MAPPING[kind].from_dict(_copy(config))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{kind}: {' '.join(str(error).split())}") from error


def _copy(value: Any) -> Any:
    """Return a copy; transformers writes a number that JSON lacks, as infinity, as a table of one text."""
    if isinstance(value, Mapping):
        special = value.get("__float__") if len(value) == 1 else None
        return float(special) if special else {name: _copy(each) for name, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value
