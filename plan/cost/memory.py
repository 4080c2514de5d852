"""The contents of a chip's memory: weights, the KV cache, and what a pass needs beside them."""

from dataclasses import dataclass
from math import ceil, inf

from prefold.common.units import spell_bytes
from prefold.plan.chip.hardware import Chip, Mesh
from prefold.plan.cost.attention import Sharding, Ways, kv_bytes, kv_width_per_chip, ways
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import table_bytes, weights_gone
from prefold.plan.cost.layouts import STATIONARY, Layout
from prefold.plan.cost.parts import all_parts
from prefold.plan.cost.state import state_bytes
from prefold.plan.cost.workload import bytes_of
from prefold.plan.model.shape import Shape


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
        weights: with the embedding if there is no table.
        table: if it lies on the device.
        kv: of the cache when the pass is over.
        state: of sequences in layers that keep one.
        activations: an estimate of the rest that a pass needs.
        available: that all of these may take.
        reserved: what is left of the memory, for a runtime, its graphs and fragments.
    """

    weights: float
    table: float
    kv: float
    state: float
    activations: float
    available: float
    reserved: float = 0

    @property
    def total(self) -> float:
        """Bytes of all of it."""
        return self.weights + self.table + self.kv + self.state + self.activations

    def as_json(self) -> dict[str, float]:
        """Return the parts by their names."""
        names = ("weights", "table", "kv", "state", "activations", "reserved")
        return {"cache" if name == "kv" else name: getattr(self, name) for name in names}

    @property
    def missing(self) -> float:
        """Bytes that the chip lacks; 0 where all fits."""
        return max(0.0, self.total - self.available)

    @property
    def excess(self) -> str:
        """The missing bytes as a text."""
        return f"{spell_bytes(self.missing)} per chip too large"

    @property
    def fits(self) -> bool:
        """Whether there is room for it."""
        return self.total <= self.available


def memory_of(case: Case) -> Memory:
    """Return what a chip holds; all chips hold the same."""
    return Memory(
        weights=_weights(case),
        table=table_bytes(case.shape, case.fold) / case.mesh.chips if case.fold and case.placement == "device" else 0,
        kv=kv_bytes(case.shape, case.workload, case.split),
        state=state_bytes(case.shape, case.workload, case.state_split),
        activations=_activations(case),
        available=case.workload.memory_share * case.chip.memory_bytes,
        reserved=(1 - case.workload.memory_share) * case.chip.memory_bytes,
    )


def _weights(case: Case) -> float:
    shape = case.shape
    embedding = 0 if case.fold or shape.tied else shape.head_weights
    gone = weights_gone(shape) if case.fold else 0
    layers = (shape.layer_weights - gone) / case.mesh.chips + _copies(case)
    ends = (shape.head_weights + embedding) / case.mesh.chips
    return layers * case.workload.layer_weight + ends * case.workload.head_weight


def _copies(case: Case) -> float:
    """Weights that a chip has because a head cannot be split: where chips are more than heads (section 3.3)."""
    shape, mesh = case.shape, case.mesh
    split, kv_heads = _split(case), shape.kept_heads
    queries = shape.query_weights + shape.expansion_weights + shape.value_width * shape.hidden_size
    more = _repeats(split, shape.num_attention_heads) * queries + _repeats(split, kv_heads) * shape.key_value_weights
    gone = case.fold is not None and (shape.state is None or shape.state.attends)
    layers = shape.attention_layers - gone
    return layers * more / mesh.chips


def _split(case: Case) -> int:
    """Return the chips that heads are split over, as far as there are heads."""
    return case.mesh.chips if case.layout == "1d-ws" else case.mesh.y * case.mesh.z


def _repeats(split: int, heads: int) -> float:
    return times_kept(split, heads) - 1


def times_kept(split: int, heads: int) -> float:
    """Return how often a head is kept, on average, where each of so many chips has whole heads, and as many of them."""
    return split * ceil(heads / split) / heads


def copied_heads(case: Case) -> list[tuple[str, int, int]]:
    """Return heads that chips do not divide: their name, their number, and the chips that they are split over."""
    shape, split = case.shape, _split(case)
    kinds = {"heads": shape.num_attention_heads}
    if shape.latent is None and shape.kept_heads != shape.num_attention_heads:
        kinds |= {"heads of keys and values": shape.kept_heads}
    return [(name, heads, split) for name, heads in kinds.items() if shape.attention_layers and heads % split]


def _activations(case: Case) -> float:
    """Bytes of the residual twice, of the widest part's values, and of the logits of each sequence's last token.

    All of it lies split over all chips, as it does if collectives run in a loop with their matmuls (section 3.5); a
    gathered weight is then never whole, but for two shards of it.
    """
    shape, tokens = case.shape, case.workload.tokens
    parts = [part for _, parts in all_parts(shape, tokens) for part in parts]
    values = tokens * (2 * shape.hidden_size + max(part.entering + part.leaving for part in parts))
    logits = case.workload.batch * shape.vocab_size
    gathered = 0 if case.layout in STATIONARY else 2 * max(part.weights for part in parts)
    kept = (values + logits) * bytes_of(case.workload.activations) + gathered * case.workload.layer_weight
    return kept / case.mesh.chips


def max_context(
    shape: Shape,
    chip: Chip,
    mesh: Mesh,
    batch: int,
    sharding: Sharding,
    *,
    layout: Layout = "2d-ws",
    kv: str = "bf16",
    share: float = 0.3,
) -> float:
    """Return the tokens of context that a share of a chip's memory holds, for each of ``batch`` sequences (table 1).

    Infinite where no layer keeps all of it, and the windows fit.
    """
    if not shape.attention_layers or not shape.decodes:
        return inf
    split: Ways = ways(sharding, layout, mesh)
    sequences = -(-batch // split.batch)
    of_a_layer = share * chip.memory_bytes / (sequences * kv_width_per_chip(shape, split.heads) * bytes_of(kv))
    windows = shape.sliding_layers * shape.sliding_window
    if of_a_layer <= shape.attention_layers * shape.sliding_window or not shape.sliding_layers:
        return of_a_layer / shape.attention_layers
    whole = shape.attention_layers - shape.sliding_layers
    return (of_a_layer - windows) / whole if whole else inf


def context_left(case: Case) -> float:
    """Return the tokens of context that fit beside all else that a case keeps; 0 where not even that fits."""
    memory = memory_of(case)
    left = memory.available - (memory.total - memory.kv)
    share = max(0.0, left / case.chip.memory_bytes)
    where = (case.shape, case.chip, case.mesh, case.workload.batch, case.sharding)
    return max_context(*where, layout=case.layout, kv=case.workload.kv, share=share)
