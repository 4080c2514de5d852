"""The shape of a decoder, from its ``config.json``.

Configs share names of fields, and these are all that is read: no model is known here by its name. A field that a file
leaves out has the default of its class in transformers, where that is installed; width and depth must be in the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from prefold.common.errors import UsageError
from prefold.plan.model.encoder import decodes
from prefold.plan.model.fields import Fields, read_fields
from prefold.plan.model.hybrid import attends, dense_ffns, ffn_layers, has_ffn, kinds_of, state_of, unknown_kinds
from prefold.plan.model.projections import query_outputs
from prefold.plan.model.quantization import stored_as
from prefold.plan.model.shape import Experts, Latent, Shape, State

_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_PARALLEL = ("parallel", "new_decoder_architecture")
_SPLIT_IN_TWO = ("gate_proj", "gate_up_proj")
# Fields of layers that are not those of a shape: such as differ from each other, share weights, or have more parts.
_BEYOND = (
    "block_configs",
    "global_head_dim",
    "hidden_size_per_layer_input",
    "lru_width",
    "moe_latent_size",
    "n_mamba_heads",
    "num_kv_shared_layers",
    "o_lora_rank",
    "per_layer_config",
    "swa_num_attention_heads",
    "zero_expert_num",
)
_SHARED = ("n_shared_experts", "shared_expert_intermediate_size")
_MOST_TIMES = 1e6  # positions are never scaled by so much
# Decoders have these activations in a gate, as of SwiGLU; without a gate they have another one.
_GATED_BY_CUSTOM = ("silu", "swish")
_NEAR = 0.05  # a model has positions, norms and biases beside what is counted here


def shape_from_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    gated: bool | None = None,
    parallel: bool | None = None,
    parameters: int | None = None,
) -> Shape:
    """Return the shape of the decoder that a ``config.json`` describes, as ``json`` or transformers reads it.

    The name is the config's ``model_type`` if it is empty. ``gated`` (the FFN has two matrices on its way in) and
    ``parallel`` (attention and FFN read the same input) override the config. Without them and fields for them, the
    number of ``parameters`` of the decoder shows whether it is gated, or else its activation; and it is serial.

    Raises:
        UsageError: a needed field is missing, or the config describes layers that no shape has; a line for each.
    """
    fields = read_fields(config)
    if beyond := [f"config: {field}: no shape has such layers" for field in _beyond(fields)]:
        raise UsageError("\n".join(beyond))
    missing, reason = _missing(fields), ""
    if gated is None:
        gated, reason = _found_gate(fields, name, None if missing else parameters)
    missing += ["whether its FFN is gated"] if gated is None else []
    if missing:
        raise UsageError(f"config: it does not say {', '.join(missing)}")
    known = _is_parallel(fields) if parallel is None else parallel
    source = f"config.json, as {fields.kind} reads it" if fields.kind else "config.json"
    source += reason + ("; serial, since no field says otherwise" if known is None else "")
    stored, _ = stored_as(config)
    return replace(_shape(fields, name), gated=bool(gated), parallel=bool(known), source=source, stored=stored)


def _found_gate(fields: Fields, name: str, parameters: int | None) -> tuple[bool | None, str]:
    """Return whether the FFN is gated, None where that is not to be found, and on which custom it is assumed."""
    found = _is_gated(fields)
    if found is None and parameters:
        found = _gated_by_count(_shape(fields, name), parameters)
    if found is None and str(fields.get("activation")).lower() in _GATED_BY_CUSTOM:
        return True, "; gated, as decoders with its activation are"
    return found, ""


def _shape(fields: Fields, name: str) -> Shape:
    latent, state = _latent(fields), state_of(fields, _inner(fields))
    window, layers = _sliding(fields)
    attending = attends(fields)
    heads = fields.size("num_attention_heads") if attending else 1
    head = latent.qk_nope_head_dim + latent.qk_rope_head_dim if latent else fields.size("head_dim")
    return Shape(
        name=name or str(fields.told.get("model_type", "config")),
        num_layers=len(kinds_of(fields)) or fields.size("num_hidden_layers"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=_inner(fields),
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(fields) if attending else 1,
        head_dim=(head or fields.size("hidden_size") // heads) if attending else 0,
        vocab_size=fields.size("vocab_size"),
        tied=bool(fields.get("tie_word_embeddings")),
        experts=_experts(fields, _inner(fields)),
        latent=latent,
        cross=bool(fields.get("is_encoder_decoder")),
        sliding_window=window,
        sliding_layers=layers,
        output_gate=_has_output_gate(fields, state),
        state=state,
        max_position_embeddings=_positions(fields, every_layer_slides=0 < layers == fields.size("num_hidden_layers")),
        decodes=decodes(fields),
    )


def _has_output_gate(fields: Fields, state: State | None) -> bool:
    """Return what a field says; beside layers with a state, whether the class has a queries' matrix twice as wide."""
    told = fields.get("attn_output_gate")
    if told is not None or state is None or not state.attention_layers or fields.made is None:
        return bool(told)
    width = fields.size("num_attention_heads") * fields.size("head_dim")
    return bool(width) and query_outputs(fields.made) == 2 * width


def _positions(fields: Fields, *, every_layer_slides: bool) -> int:
    """Return the tokens that a sequence may have; 0 where the file names no limit, or no layer sees them all.

    Positions that are scaled are some times the original ones; most files have the scaled number, some the original.
    """
    limit = 0 if every_layer_slides else fields.told_size("max_position_embeddings")
    scaling = fields.told.get("rope_scaling") or fields.told.get("rope_parameters")
    known = scaling if isinstance(scaling, Mapping) else {}
    times, original = known.get("factor"), known.get("original_max_position_embeddings")
    if limit and isinstance(times, int | float) and isinstance(original, int) and times < _MOST_TIMES:
        return max(limit, int(times * original))
    return limit


def _sliding(fields: Fields) -> tuple[int, int]:
    """Return the window of layers that see a part of the context, and their number; zeros where all see all of it."""
    kinds, window = kinds_of(fields), fields.size("sliding_window")
    if kinds:
        chunk, chunked = fields.size("attention_chunk_size"), kinds.count("chunked_attention")
        found = (chunk, chunked) if chunked else (window, kinds.count("sliding_attention"))
        return found if all(found) else (0, 0)
    if not window or fields.get("use_sliding_window") is False:
        return 0, 0
    layers, every = fields.size("num_hidden_layers"), fields.size("sliding_window_pattern")
    return window, layers - (layers // every if every else 0)


def _is_parallel(fields: Fields) -> bool | None:
    """Return whether attention and FFN read the same input; None where no field says it."""
    told = [fields.get(field) for field in _PARALLEL if fields.get(field) is not None]
    return any(told) if told else None


def _beyond(fields: Fields) -> Iterator[str]:
    yield from (field for field in _BEYOND if fields.get(field))
    yield from (f"layer_types: {kind}" for kind in unknown_kinds(fields))
    if fields.get("v_head_dim") and not fields.get("kv_lora_rank"):
        yield "v_head_dim"


def _needed(fields: Fields) -> list[str]:
    spared = {"num_attention_heads": not attends(fields), "num_hidden_layers": bool(kinds_of(fields))}
    return [field for field in _NEEDED if not spared.get(field)]


def _missing(fields: Fields) -> list[str]:
    missing = [field for field in _needed(fields) if not fields.get(field)]
    missing += [] if _inner(fields) or not has_ffn(fields, 0) else ["intermediate_size"]
    missing += [] if fields.get("tie_word_embeddings") is not None else ["tie_word_embeddings"]
    if fields.get("kv_lora_rank"):
        missing += [field for field in _LATENT if fields.get(field) is None]
    if fields.size("num_experts") and not fields.get("num_experts_per_tok"):
        missing.append("num_experts_per_tok")
    return missing


def _inner(fields: Fields) -> int:
    """Return F: a field, a multiple of E, or four times E where it is null; 0 without any of these."""
    told = _adjusted(fields) or fields.size("moe_intermediate_size")
    ratio = fields.size("expansion_ratio") or (4 if fields.has("intermediate_size") else 0)
    return told or ratio * fields.size("hidden_size")


def _adjusted(fields: Fields) -> int:
    """Return the field as it is; that of shared experts where there are no others; or two thirds, up to a multiple."""
    told = fields.size("intermediate_size")
    if not fields.size("num_experts") and fields.size("shared_intermediate_size"):
        return fields.size("shared_intermediate_size")
    if not fields.get("block_auto_adjust_ff_dim"):
        return told
    of = fields.size("block_multiple_of") or 1
    return of * ceil(int((fields.get("block_ffn_dim_multiplier") or 1) * int(2 * told / 3)) / of)


def _key_value_heads(fields: Fields) -> int:
    if fields.get("multi_query") and not fields.get("new_decoder_architecture"):
        return 1
    return fields.size("num_key_value_heads") or fields.size("num_attention_heads")


def _is_gated(fields: Fields) -> bool | None:
    """Return whether a field, the activation's name or the class's matrices show a gate; None for neither."""
    told = fields.get("gated") if has_ffn(fields, _inner(fields)) else False
    if told is not None:
        return bool(told)
    activation = str(fields.get("activation")).lower()
    if "glu" in activation or "gated" in activation:
        return True
    inner = [name.split(".") for name in fields.matrices if name.startswith("layers.") and "att" not in name]
    return any(name[-1] in _SPLIT_IN_TWO for name in inner) if inner else None


def _gated_by_count(shape: Shape, parameters: int) -> bool | None:
    """Return the choice that is nearer to so many parameters; None where neither is near."""
    apart, gated = min((abs(replace(shape, gated=each).weights / parameters - 1), each) for each in (True, False))
    return gated if apart < _NEAR else None


def _latent(fields: Fields) -> Latent | None:
    rank = fields.size("kv_lora_rank")
    if not rank:
        return None
    plain, turned, value = (fields.size(field) for field in _LATENT)
    return Latent(fields.size("q_lora_rank") or None, rank, plain, turned, value)


def _experts(fields: Fields, inner: int) -> Experts | None:
    """Return the experts; None where all layers have one FFN, ``inner`` values wide."""
    count = fields.size("num_experts")
    if not count or fields.get("is_moe") is False or dense_ffns(fields) == ffn_layers(fields, inner):
        return None
    width, active = _expert_width(fields, inner), fields.size("num_experts_per_tok")
    return Experts(count, active, width, _shared_width(fields, width), _dense_layers(fields))


def _expert_width(fields: Fields, inner: int) -> int:
    """Return an expert's width; it has the usual name where dense layers have a name of their own."""
    own = fields.size("moe_intermediate_size")
    return own or (fields.size("plain_intermediate_size") if fields.has("intermediate_size_mlp") else inner)


def _shared_width(fields: Fields, width: int) -> int:
    """Return the width of the shared experts; one expert's where only the class of the config names them."""
    if not any(fields.has(field) for field in _SHARED):
        return width if any(".shared_expert" in name for name in fields.matrices) else 0
    return fields.size("shared_expert_intermediate_size") or width * fields.size("n_shared_experts")


def _dense_layers(fields: Fields) -> int:
    if (alone := dense_ffns(fields)) is not None:
        return alone
    kinds = fields.get("mlp_layer_types")
    if kinds:
        return sum(kind == "dense" for kind in kinds)
    return sum(not _has_experts(fields, layer) for layer in range(fields.size("num_hidden_layers")))


def _has_experts(fields: Fields, layer: int) -> bool:
    listed = fields.get("moe_layers")
    if isinstance(listed, list):
        return layer in listed
    last = fields.get("moe_layer_end_index")
    return (
        layer >= fields.size("first_k_dense_replace")
        and (last is None or last < 0 or layer <= last)
        and layer not in (fields.get("mlp_only_layers") or ())
        and (layer + 1) % (fields.size("decoder_sparse_step") or 1) == 0
        and layer % (fields.size("expert_layer_period") or 1) == fields.size("expert_layer_offset")
    )
