"""The matrices of one layer, as layouts see them: one or two parts of which each enters and leaves."""

from dataclasses import replace
from math import prod

from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.fold import attention_columns, mixer_columns, state_columns
from prefold.plan.cost.layouts import Collective, Layout, Part, ffn, first, gathered_axes, rest_axes
from prefold.plan.model.shape import Shape, State


def attention_part(shape: Shape, *, by_head: bool = False) -> Part:
    """The matrices of attention: queries, keys and values on the way in, and the one on the way out.

    ``by_head``: attention is split over heads, of which those of keys and values may be too few.
    """
    entering = shape.asking_width + shape.key_value_width
    part = Part(entering, shape.value_width, shape.attention_weights, attends=True)
    heads = 1 if shape.latent else shape.num_key_value_heads
    return replace(part, key_values=shape.key_value_width, heads=heads) if by_head else part


def state_part(state: State) -> Part:
    """The matrices of a mixer that keeps a state; it is split over its channels."""
    return Part(state.entering, state.leaving, state.weights)


def ffn_part(shape: Shape, tokens: float, *, expert: bool) -> Part:
    """The FFN of a layer; of experts, what a token goes through, and the weights that ``tokens`` read."""
    if not expert or not shape.experts:
        return ffn(shape.hidden_size, shape.intermediate_size, gated=shape.gated)
    experts = shape.experts
    width, shared = experts.moe_intermediate_size, experts.shared_intermediate_size
    active = ffn(shape.hidden_size, experts.num_experts_per_tok * width + shared, gated=shape.gated)
    read = shape.experts_read(tokens) * shape.ffn_weights(width) + shape.ffn_weights(shared)
    return Part(active.entering, active.leaving, read)


def layer_parts(
    shape: Shape, tokens: float, *, expert: bool, folded: bool = False, by_head: bool = False
) -> list[Part]:
    """Return the parts of a layer: one where attention and FFN read the same input (section 3.4), else two.

    ``expert``: its FFN is made of experts, which are read by ``tokens``. ``folded``: it is the first layer, and a table
    replaces what depends on the token alone. ``by_head``: attention is split over heads.
    """
    attention, inner = attention_part(shape, by_head=by_head), ffn_part(shape, tokens, expert=expert)
    if folded:
        attention = _folded(shape, attention)
    elif shape.parallel:
        attention = _joined(attention, inner)
    cross = [Part(shape.query_width, shape.value_width, shape.cross_weights)] if shape.cross else []
    return [attention, *cross] if shape.parallel else [attention, *cross, inner]


def _joined(one: Part, other: Part) -> Part:
    sums = (one.entering + other.entering, one.leaving + other.leaving, one.weights + other.weights)
    return Part(*sums, key_values=one.key_values, heads=one.heads, attends=one.attends)


def _folded(shape: Shape, mixer: Part) -> Part:
    """Attention, or a mixer with a state, without what a table replaces.

    Compressed queries are still to be expanded; what is sent for that is counted as if they were as wide as the
    residual.
    """
    entering = shape.query_width if shape.latent and shape.latent.q_lora_rank else 0
    found = attention_columns(shape) if mixer.attends else state_columns(shape)
    gone = sum(column.weights for column in found)
    return Part(entering, mixer.leaving, mixer.weights - gone, attends=mixer.attends)


def look_up(shape: Shape, layout: Layout, mesh: Mesh, tokens: float, *, by_head: bool) -> list[Collective]:
    """Return what is sent for rows of a table that is split over all chips: to their sequences, and to all their heads.

    A column of an FFN is added to the residual before it is sent.
    """
    over, rest = mesh.along(gathered_axes(layout)), mesh.along(rest_axes(layout))
    width = shape.hidden_size + sum(column.width for column in mixer_columns(shape))
    part, ways = _first_mixer(shape, by_head=by_head), prod(rest)
    heads = first(rest, part.sharing(ways, 1, ways))
    found = [
        Collective("all-to-all", over, tokens * width / mesh.chips),
        Collective("all-gather", heads, tokens / prod(over) * part.kept(ways)),
    ]
    return [each for each in found if each.axes]


def _first_mixer(shape: Shape, *, by_head: bool) -> Part:
    if shape.state and not shape.state.attends:
        return state_part(shape.state)
    return attention_part(shape, by_head=by_head)


def all_parts(
    shape: Shape, tokens: float, *, folded: bool = False, by_head: bool = False
) -> list[tuple[int, list[Part]]]:
    """Return how many layers have which parts; no two entries are of the same layer, but for models with a state."""
    kinds = [(shape.dense_layers, False), (shape.expert_layers, True)]
    counts = [(count, expert) for count, expert in kinds if count]
    if shape.state:
        inner = [(count, [ffn_part(shape, tokens, expert=expert)]) for count, expert in counts]
        return [*_mixers(shape, shape.state, folded=folded, by_head=by_head), *inner]
    if not folded:
        return [(count, layer_parts(shape, tokens, expert=expert, by_head=by_head)) for count, expert in counts]
    kind = counts[0][1]
    rest = [(count - (expert == kind), expert) for count, expert in counts]
    found = [(count, layer_parts(shape, tokens, expert=expert, by_head=by_head)) for count, expert in rest if count]
    return [(1, layer_parts(shape, tokens, expert=kind, folded=True)), *found]


def _mixers(shape: Shape, state: State, *, folded: bool, by_head: bool) -> list[tuple[int, list[Part]]]:
    """Return attention and mixers with a state, each by itself; those of a folded first layer come first."""
    attention, mixer = attention_part(shape, by_head=by_head), state_part(state)
    kinds = [(state.attention_layers, attention, state.attends), (state.layers, mixer, state.starts)]
    first = [(1, [_folded(shape, part) for _, part, is_first in kinds if is_first])] if folded else []
    rest = [(count - (folded and is_first), [part]) for count, part, is_first in kinds]
    return [*first, *(each for each in rest if each[0])]
