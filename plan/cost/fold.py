"""What folding the first layer changes: weights that are gone, and rows that are read in their place.

The row's width is the general form of Graef 2024: 2(d+e) in a serial block, and 3d+2e in a parallel one, whose FFN is a
column of its own. Of compressed attention the columns are the compressed queries, the compressed keys and values, and
the turned key. Of a mixer with a state it is all that comes before its convolution.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from prefold.common.errors import UsageError
from prefold.plan.cost.workload import Workload, bytes_of, head_weight_bytes, layer_weight_bytes
from prefold.plan.model.shape import Shape

Placement = Literal["device", "host", "disk"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


@dataclass(frozen=True)
class Column:
    """A slice of a row, and the weights that it replaces, of which a token is multiplied by ``active``."""

    name: str
    width: int
    weights: float
    active: float


@dataclass(frozen=True)
class Fold:
    """A table: its place, and the type of its values."""

    placement: Placement = "device"
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        """Raise ``UsageError`` for an unknown place or type."""
        bytes_of(self.dtype)
        if self.placement not in PLACEMENTS:
            raise UsageError(f"{self.placement}: no such place for a table; there are {', '.join(PLACEMENTS)}")


def table_for(workload: Workload, placement: Placement = "device") -> Fold:
    """Return a table whose values have the type of what chips calculate with, or of the weights if that is wider."""
    return Fold(placement, max(workload.activations, workload.weights, key=bytes_of))


def columns(shape: Shape) -> list[Column]:
    """Return a row's slices, the residual first."""
    ffn = [Column("FFN", shape.hidden_size, *_first_ffn(shape))] if shape.parallel else []
    return [Column("residual", shape.hidden_size, 0, 0), *mixer_columns(shape), *ffn]


def mixer_columns(shape: Shape) -> list[Column]:
    """Return the slices that come of the matrices before the first mix of tokens: attention's, a state's, or both."""
    attention = attention_columns(shape) if shape.state is None or shape.state.attends else []
    return [*attention, *state_columns(shape)]


def state_columns(shape: Shape) -> list[Column]:
    """Return the slice that comes of the matrices before a convolution; none where the first layer has no state."""
    state = shape.state
    if state is None or not state.starts:
        return []
    weights = shape.hidden_size * state.entering
    return [Column("state", state.entering, weights, weights)]


def attention_columns(shape: Shape) -> list[Column]:
    """Return the slices that come of attention's matrices."""
    compressed = shape.latent.q_lora_rank if shape.latent else None
    queries = compressed or shape.asking_width
    return [
        Column("queries", queries, shape.hidden_size * queries, shape.hidden_size * queries),
        Column("keys and values", shape.key_value_width, shape.key_value_weights, shape.key_value_weights),
    ]


def _first_ffn(shape: Shape) -> tuple[float, float]:
    if shape.dense_layers or not shape.experts:
        weights = shape.ffn_weights(shape.intermediate_size)
        return weights, weights
    experts = shape.experts
    common = shape.hidden_size * experts.num_experts + shape.ffn_weights(experts.shared_intermediate_size)
    each = shape.ffn_weights(experts.moe_intermediate_size)
    return common + experts.num_experts * each, common + experts.num_experts_per_tok * each


def row_width(shape: Shape) -> int:
    """Values of a row."""
    return sum(column.width for column in columns(shape))


def weights_gone(shape: Shape) -> float:
    """Weights that the table replaces, the embedding's aside."""
    return sum(column.weights for column in columns(shape))


def active_gone(shape: Shape) -> float:
    """Weights that one token is not multiplied by any more."""
    return sum(column.active for column in columns(shape))


def reads_gone(shape: Shape, tokens: float) -> float:
    """Weights that a pass over ``tokens`` does not read any more."""
    gone = weights_gone(shape)
    if not shape.parallel or not shape.experts or shape.dense_layers:
        return gone
    unread = shape.experts.num_experts - shape.experts_read(tokens)
    return gone - unread * shape.ffn_weights(shape.experts.moe_intermediate_size)


def modules_gone(shape: Shape) -> int:
    """Return how many modules the table replaces: a norm, three projections, and an FFN with its activation."""
    serial = 1 + (3 if shape.state is None or shape.state.attends else 0) + len(state_columns(shape))
    return serial + shape.ffn_matrices + 1 if shape.parallel else serial


def row_bytes(shape: Shape, fold: Fold) -> float:
    """Bytes of a row."""
    return row_width(shape) * bytes_of(fold.dtype)


def table_bytes(shape: Shape, fold: Fold) -> float:
    """Bytes of all rows."""
    return shape.vocab_size * row_bytes(shape, fold)


def first_layer_reads(shape: Shape, tokens: float, weights: str, fold: Fold | None = None) -> float:
    """Bytes of parameters that a pass reads of what can be folded: weights and embedding rows, or rows of the table."""
    if fold:
        return tokens * row_bytes(shape, fold)
    embedding = tokens * shape.hidden_size * head_weight_bytes(weights)
    return reads_gone(shape, tokens) * layer_weight_bytes(weights) + embedding


def break_even_batch(shape: Shape, weights: str = "bf16", fold: Fold | None = None) -> int | None:
    """Return the most tokens per pass at which rows are no more bytes than what they replace; None where all gain."""
    fold = fold or Fold()
    low, high = 0, 1
    while _saves(shape, high, weights, fold):
        low, high = high, high * 2
        if high > 1 << 40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _saves(shape, middle, weights, fold) else (low, middle)
    return low


def _saves(shape: Shape, tokens: int, weights: str, fold: Fold) -> bool:
    return first_layer_reads(shape, tokens, weights, fold) <= first_layer_reads(shape, tokens, weights)
