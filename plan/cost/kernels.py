"""The kernels that one rank runs in a pass under tensor parallelism: products, attention and all-reduces.

Engines lay a model out so: heads and the FFN's inner values are split over the ranks, and two all-reduces a layer, or
one where attention and FFN run side by side, add the ranks' parts up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from prefold.plan.chip.hardware import Chip
from prefold.plan.cost.attention import Ways, kv_bytes, score_flops
from prefold.plan.cost.case import Case
from prefold.plan.cost.state import state_flops, state_traffic
from prefold.plan.cost.workload import MULTIPLIED, bytes_of, layer_weight_bytes

# Of activations, and of weights that engines leave so: the router, the head, and the heads' own expansions in MLA.
_WHOLE = "bf16"


@dataclass(frozen=True)
class Matmul:
    """``count`` products ``[m, k] x [k, n]`` of a pass.

    Attributes:
        dtype: of the weights.
        weights: values that one product reads; more or less than ``k * n`` where experts share it.
        experts: it is a product of experts, grouped by the tokens that chose them.
    """

    count: float
    m: float
    n: float
    k: float
    dtype: str
    weights: float
    experts: bool = False

    @property
    def compute(self) -> str:
        """Type that it runs in."""
        return MULTIPLIED.get(self.dtype, _WHOLE)

    def at_full_rates(self, chip: Chip) -> tuple[float, float, float]:
        """Return the seconds of its bytes, of its operations, and of its activations' bytes alone."""
        activations = self.m * self.k * bytes_of(_WHOLE)
        moved = self.weights * layer_weight_bytes(self.dtype) + activations + self.m * self.n * bytes_of(_WHOLE)
        computed = 2 * self.m * self.n * self.k / chip.peak_of(self.compute)
        return moved / chip.memory_bandwidth, computed, activations / chip.memory_bandwidth


def matmuls(case: Case) -> list[Matmul]:
    """Return the products of a pass; a table replaces those of the first layer that see the token alone."""
    return [each for each in _matmuls(case) if each.count and each.weights]


def _matmuls(case: Case) -> Iterator[Matmul]:
    shape, ranks, folded = case.shape, case.mesh.chips, case.fold is not None
    yield from _attention(case, shape.attention_layers, folded and (shape.state is None or shape.state.attends))
    yield from _mixers(case, folded and shape.state is not None and shape.state.starts)
    for count, expert in ((shape.dense_layers, False), (shape.expert_layers, True)):
        first = folded and shape.parallel and expert == (shape.dense_layers == 0)
        yield from _ffn(case, count - first, expert=expert)
    yield _matmul(1, case.workload.logits, shape.vocab_size / ranks, shape.hidden_size, _WHOLE)


def _matmul(count: float, m: float, n: float, k: float, dtype: str) -> Matmul:
    return Matmul(count, m, n, k, dtype, n * k)


def _attention(case: Case, count: int, folded: bool) -> Iterator[Matmul]:
    """Yield the products of ``count`` layers' attention; ``folded``, the first has none on the way in."""
    shape, ranks, dtype = case.shape, case.mesh.chips, case.workload.weights
    tokens, width, latent = case.workload.tokens, shape.hidden_size, case.shape.latent
    share = ceil(shape.num_attention_heads / ranks) / shape.num_attention_heads
    queries = share * shape.asking_width
    if latent is None:
        keys = ceil(shape.num_key_value_heads / ranks) * shape.key_value_width / shape.num_key_value_heads
        yield _matmul(count - folded, tokens, queries + keys, width, dtype)
    else:
        yield _matmul(count - folded, tokens, (latent.q_lora_rank or queries) + shape.key_value_width, width, dtype)
        yield _matmul(count, tokens, queries if latent.q_lora_rank else 0, latent.q_lora_rank or 0, dtype)
        for inner in (latent.qk_nope_head_dim, latent.v_head_dim):
            yield _matmul(count, tokens, share * shape.num_attention_heads * inner, latent.kv_lora_rank, _WHOLE)
    yield _matmul(count, tokens, width, share * shape.value_width, dtype)
    if shape.cross:
        yield _matmul(2 * count, tokens, share * shape.query_width, width, dtype)


def _mixers(case: Case, folded: bool) -> Iterator[Matmul]:
    """Yield the products of mixers that keep a state."""
    state, ranks, dtype = case.shape.state, case.mesh.chips, case.workload.weights
    tokens, width = case.workload.tokens, case.shape.hidden_size
    if state:
        yield _matmul(state.layers - folded, tokens, state.entering / ranks, width, dtype)
        yield _matmul(state.layers, tokens, width, state.leaving / ranks, dtype)


def _ffn(case: Case, count: int, *, expert: bool) -> Iterator[Matmul]:
    shape, tokens, experts = case.shape, case.workload.tokens, case.shape.experts
    if not expert or experts is None:
        yield from _two(case, count, shape.intermediate_size)
        return
    yield _matmul(count, tokens, experts.num_experts, shape.hidden_size, _WHOLE)
    yield from _two(case, count, experts.shared_intermediate_size)
    chosen, read = tokens * experts.num_experts_per_tok, shape.experts_read(tokens)
    for each in _two(case, count, experts.moe_intermediate_size):
        yield Matmul(count, chosen, each.n, each.k, each.dtype, read * each.weights, experts=True)


def _two(case: Case, count: int, inner: int) -> Iterator[Matmul]:
    """Yield an FFN's products on the way in, as one, and out."""
    shape, share, tokens = case.shape, inner / case.mesh.chips, case.workload.tokens
    yield _matmul(count, tokens, (shape.ffn_matrices - 1) * share, shape.hidden_size, case.workload.weights)
    yield _matmul(count, tokens, shape.hidden_size, share, case.workload.weights)


def attention(case: Case) -> tuple[int, float, float, float]:
    """Return the layers that mix tokens, and at full rates the seconds of one's bytes, operations and activations."""
    shape, chip, ranks, workload = case.shape, case.chip, case.mesh.chips, case.workload
    layers, split = shape.attention_layers + shape.state_layers, Ways(1, ranks)
    outputs = workload.tokens * (shape.query_width + shape.value_width) / ranks * bytes_of(_WHOLE)
    moved = (kv_bytes(shape, workload, split) + state_traffic(shape, workload, split)) / layers + outputs
    computed = (score_flops(shape, workload) + state_flops(shape, workload)) / layers / ranks / chip.peak_of(_WHOLE)
    return layers, moved / chip.memory_bandwidth, computed, outputs / chip.memory_bandwidth


def all_reduces(case: Case) -> tuple[int, float]:
    """Return the all-reduces of a pass, and the bytes that each rank puts into one."""
    shape, workload = case.shape, case.workload
    mixers = shape.attention_layers * (1 + shape.cross) + shape.state_layers
    count = mixers + (0 if shape.parallel else shape.ffn_layers)
    return count if case.mesh.chips > 1 else 0, workload.tokens * shape.hidden_size * bytes_of(workload.activations)
