"""Layers that keep a state in place of keys and values, from the fields of a config: which there are, and how large."""

from dataclasses import replace
from math import ceil

from prefold.plan.model.fields import Fields
from prefold.plan.model.shape import State

ATTENTION = ("attention", "full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "*")
STATE = ("linear_attention", "mamba", "mamba2", "conv", "M")
BOTH = ("hybrid",)
# Layers that are an FFN and nothing else, without and with experts.
PLAIN, ROUTED = ("mlp", "-"), ("moe", "E")


def kinds_of(fields: Fields) -> list[str]:
    """Return the kind of every layer; none where no field tells them apart."""
    if told := fields.get("layer_types") or fields.get("hybrid_override_pattern"):
        return [str(kind) for kind in told]
    return _kinds_by_period(fields, range(fields.size("num_hidden_layers")))


def _kinds_by_period(fields: Fields, layers: range) -> list[str]:
    if period := fields.size("attn_layer_period"):
        offset = fields.size("attn_layer_offset")
        return ["attention" if layer % period == offset else "mamba" for layer in layers]
    if every := fields.size("full_attention_interval"):
        return ["linear_attention" if (layer + 1) % every else "full_attention" for layer in layers]
    alone = mixer_of(fields) and not fields.get("conv_L_cache") and "num_attention_heads" not in fields.told
    return ["mamba"] * len(layers) if alone else []


def unknown_kinds(fields: Fields) -> list[str]:
    """Return the kinds of layers that no shape has, each once."""
    known = (*ATTENTION, *PLAIN, *ROUTED, *((*STATE, *BOTH) if mixer_of(fields) else ()))
    return sorted({kind for kind in kinds_of(fields) if kind not in known})


def attends(fields: Fields) -> bool:
    """Return whether any layer has attention."""
    kinds = kinds_of(fields)
    return not kinds or any(kind in (*ATTENTION, *BOTH) for kind in kinds)


def ffn_layers(fields: Fields, inner: int) -> int:
    """Return the number of layers with an FFN: those of that kind where a config has such, else all or none."""
    kinds = kinds_of(fields)
    if alone := sum(kind in (*PLAIN, *ROUTED) for kind in kinds):
        return alone
    return (len(kinds) or fields.size("num_hidden_layers")) if has_ffn(fields, inner) else 0


def has_ffn(fields: Fields, inner: int) -> bool:
    """Return whether there are FFNs, ``inner`` values wide.

    Where no layer attends, a mixer may be all there is: its width is then the only one.
    """
    mixer = mixer_of(fields)
    return mixer is None or attends(fields) or inner not in (0, mixer.leaving)


def state_of(fields: Fields, inner: int) -> State | None:
    """Return what layers without keys and values keep; None where all layers have attention and an FFN."""
    kinds, mixer = kinds_of(fields), mixer_of(fields)
    count = sum(kind in (*STATE, *BOTH) for kind in kinds)
    if mixer is None or not count:
        return None
    return replace(
        mixer,
        layers=count,
        attention_layers=sum(kind in (*ATTENTION, *BOTH) for kind in kinds),
        ffn_layers=ffn_layers(fields, inner),
        starts=kinds[0] in (*STATE, *BOTH),
        attends=kinds[0] in (*ATTENTION, *BOTH),
    )


def dense_ffns(fields: Fields) -> int | None:
    """Return the number of layers that are an FFN without experts; None where layers have more than that."""
    kinds = kinds_of(fields)
    return sum(kind in PLAIN for kind in kinds) if any(kind in (*PLAIN, *ROUTED) for kind in kinds) else None


def mixer_of(fields: Fields) -> State | None:
    """Return the mixer that the fields describe, as of no layers; None without one."""
    if fields.size("linear_num_value_heads"):
        return _delta_rule(fields)
    if fields.size("state_size"):
        return _mamba2(fields) if fields.size("mamba_groups") else _mamba(fields)
    if fields.size("conv_L_cache"):
        return _convolution(fields)
    return None


def _mixer(
    hidden: int, entering: int, leaving: int, convolved: int, kernel: int, *, inside: int = 0, kept: int
) -> State:
    """Return a mixer: ``convolved`` channels, ``inside`` further weights, ``kept`` values that recur."""
    weights = hidden * (entering + leaving) + convolved * kernel + inside
    return State(0, 0, 0, entering, leaving, weights, kept, convolved * max(0, kernel - 1))


def _delta_rule(fields: Fields) -> State:
    """Queries, keys, values and a gate of the values' width, and two values for each of their heads."""
    heads, width = fields.size("linear_num_value_heads"), fields.size("linear_value_head_dim")
    key, value = fields.size("linear_num_key_heads") * fields.size("linear_key_head_dim"), heads * width
    kept, kernel = value * fields.size("linear_key_head_dim"), fields.size("linear_conv_kernel_dim")
    entering = 2 * key + 2 * value + 2 * heads
    return _mixer(fields.size("hidden_size"), entering, value, 2 * key + value, kernel, kept=kept)


def _mamba(fields: Fields) -> State:
    """Values and their gate; the step, and what writes and reads the state, come of the values behind a convolution."""
    hidden, size = fields.size("hidden_size"), fields.size("state_size")
    inner, told = _expand(fields), fields.get("time_step_rank")
    rank = told if isinstance(told, int) else ceil(hidden / 16)
    inside = inner * (2 * rank + 2 * size) + inner * size
    return _mixer(hidden, 2 * inner, inner, inner, fields.size("conv_kernel"), inside=inside, kept=inner * size)


def _mamba2(fields: Fields) -> State:
    """Values, their gate, what writes and reads the state, and a step for each head."""
    heads, size = fields.size("mamba_num_heads"), fields.size("state_size")
    width = fields.get("mamba_head_dim")
    inner = fields.size("mamba_inner") or (heads * width if isinstance(width, int) else _expand(fields))
    both = 2 * fields.size("mamba_groups") * size
    entering = 2 * inner + both + heads
    return _mixer(
        fields.size("hidden_size"), entering, inner, inner + both, fields.size("conv_kernel"), kept=inner * size
    )


def _convolution(fields: Fields) -> State:
    """Values and two gates; nothing recurs."""
    hidden = fields.size("hidden_size")
    return _mixer(hidden, 3 * hidden, hidden, hidden, fields.size("conv_L_cache"), kept=0)


def _expand(fields: Fields) -> int:
    return int((fields.get("mamba_expand") or 2) * fields.size("hidden_size"))
