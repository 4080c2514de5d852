"""The parts of a forward pass's time at the chip's full rates, each by itself (section 2).

The paper never puts them together, and neither does this file.
"""

from dataclasses import dataclass
from functools import cached_property

from prefold.plan.cost.attention import kv_bytes, score_flops
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import active_gone, modules_gone, reads_gone, row_bytes
from prefold.plan.cost.layouts import Collective, collectives, ffn
from prefold.plan.cost.state import state_flops, state_traffic
from prefold.plan.cost.workload import bytes_of


@dataclass(frozen=True)
class Terms:
    """Seconds per forward pass, and the numbers behind costs that do not depend on sizes.

    Attributes:
        compute: of the matmuls with weights, 2 operations for each weight and token.
        attention: of the scores, of the sum of values, and of updates of a state.
        weights: from memory, once per pass; of experts, as many as tokens that choose evenly need in the mean.
        kv: of the cache, from memory.
        rows: of the table or the embedding, from memory.
        link_rows: of a table elsewhere, over the link to it.
        communication: between chips.
        phases: starts of collectives: along each axis, or one where a switch joins the chips.
        layers: that the pass goes through.
        gone: modules that a table replaces.
        state: of sequences, from memory and back.
        spared: of ``weights``, where all tokens choose the same experts.
    """

    compute: float
    attention: float
    weights: float
    kv: float
    rows: float
    link_rows: float
    communication: float
    phases: int
    layers: int = 0
    gone: int = 0
    state: float = 0
    spared: float = 0

    @cached_property
    def arithmetic(self) -> float:
        """Seconds of all that is calculated."""
        return self.compute + self.attention

    @cached_property
    def memory(self) -> float:
        """Seconds of all that passes through the chip's memory."""
        return self.weights + self.kv + self.state + self.rows

    @cached_property
    def least_memory(self) -> float:
        """Seconds of what passes through the chip's memory at least: a mean is no bound."""
        return self.memory - self.spared

    @cached_property
    def lower(self) -> float:
        """Seconds if everything overlaps: the largest of what runs side by side, with the fewest experts."""
        return max(self.arithmetic, self.least_memory, self.communication, self.link_rows)

    @cached_property
    def upper(self) -> float:
        """Seconds if nothing overlaps: the sum."""
        return self.arithmetic + self.memory + self.communication + self.link_rows

    @cached_property
    def bound(self) -> str:
        """The name of the term that bounds the pass: the largest one of the largest group."""
        groups = {
            self.arithmetic: {"compute": self.compute, "attention": self.attention},
            self.least_memory: {
                "weights": self.weights - self.spared,
                "kv": self.kv,
                "state": self.state,
                "rows": self.rows,
            },
            self.communication: {"communication": self.communication},
            self.link_rows: {"rows": self.link_rows},
        }
        group = groups[self.lower]
        return max(group, key=lambda name: group[name])


def terms_of(case: Case) -> Terms:
    """Calculate every term of a case; raises ``Infeasible`` where the batch cannot be shared out like that."""
    case.require()
    sent = case.sent_by_layer()
    rate = case.mesh.chips * case.chip.peak_of(case.workload.activations)
    layers = case.mesh.chips * case.chip.peak_of(case.workload.compute)
    memory = case.mesh.chips * case.chip.memory_bandwidth
    rows = _row_bytes(case) / case.mesh.chips
    elsewhere = case.placement in ("host", "disk")
    return Terms(
        compute=(flops(case) - head_flops(case)) / layers + head_flops(case) / rate,
        attention=(score_flops(case.shape, case.workload) + state_flops(case.shape, case.workload)) / rate,
        weights=weight_bytes_read(case) / memory,
        kv=kv_bytes(case.shape, case.workload, case.split) / case.chip.memory_bandwidth,
        state=state_traffic(case.shape, case.workload, case.state_split) / case.chip.memory_bandwidth,
        rows=0 if elsewhere else rows / case.chip.memory_bandwidth,
        link_rows=rows / _row_bandwidth(case) if elsewhere else 0,
        communication=_seconds(sent_bytes(case), case.chip.joined_at(case.mesh.chips)),
        phases=sum(
            count * (each.phases if case.is_torus else min(1, each.phases)) for count, layer in sent for each in layer
        ),
        layers=case.shape.num_layers,
        gone=modules_gone(case.shape) if case.fold else 0,
        spared=max(0.0, weight_bytes_read(case) - fewest_weight_bytes(case)) / memory,
    )


def flops(case: Case) -> float:
    """Operations of the matmuls with weights: all tokens with those of the layers, fewer with the head."""
    gone = active_gone(case.shape) if case.fold else 0
    layers = case.shape.active_weights - case.shape.head_weights - gone
    return 2 * layers * case.workload.tokens + head_flops(case)


def head_flops(case: Case) -> float:
    """Operations of the head."""
    return 2 * case.shape.head_weights * case.workload.logits


def weight_bytes_read(case: Case) -> float:
    """Bytes of weights that all chips together read, in the mean over tokens that choose their experts evenly."""
    return _weight_bytes(case, case.workload.tokens)


def fewest_weight_bytes(case: Case) -> float:
    """Bytes of weights that all chips together read if every token chooses the experts of one."""
    return _weight_bytes(case, 1)


def _weight_bytes(case: Case, tokens: int) -> float:
    gone = reads_gone(case.shape, tokens) if case.fold else 0
    layers = case.shape.weights_read(tokens) - case.shape.head_weights - gone
    return layers * case.workload.layer_weight + case.shape.head_weights * case.workload.head_weight


def sent_bytes(case: Case, *, exact: bool = False) -> float:
    """Bytes that a chip sends in a pass; ``exact`` with the factor (K-1)/K, which the paper takes for 1."""
    return sum(count * layer_bytes(case, index, exact=exact) for index, (count, _) in enumerate(case.sent_by_layer()))


def ffn_bytes(case: Case) -> float:
    """Bytes that a chip sends for one FFN as the paper counts it: two matmuls, without a gate, a head or an expert."""
    shape = case.shape
    width = shape.intermediate_size if shape.dense_layers or not shape.experts else shape.experts.moe_intermediate_size
    part = ffn(shape.hidden_size, width)
    return _bytes(case, collectives(case.layout, case.mesh, case.workload.tokens, shape.hidden_size, part))


def layer_bytes(case: Case, index: int = 0, *, exact: bool = False) -> float:
    """Bytes that a chip sends in one layer of the entry ``index`` of ``case.sent_by_layer()``."""
    return _bytes(case, case.sent_by_layer()[index][1], exact=exact)


def _bytes(case: Case, sent: list[Collective], *, exact: bool = False) -> float:
    kinds = {True: case.workload.layer_weight, False: bytes_of(case.workload.activations)}
    return sum(each.volume(exact=exact) * kinds[each.weights] for each in sent)


def _row_bytes(case: Case) -> float:
    if case.fold:
        return case.workload.tokens * row_bytes(case.shape, case.fold)
    return case.workload.tokens * case.shape.hidden_size * case.workload.head_weight


def _row_bandwidth(case: Case) -> float:
    return case.chip.disk_bandwidth if case.placement == "disk" else case.chip.host_bandwidth


def _seconds(amount: float, bandwidth: float) -> float:
    if not amount:
        return 0
    return amount / bandwidth if bandwidth else float("inf")
