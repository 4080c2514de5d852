"""Attention over chips: whose keys and values a chip holds, and what moves for that (section 3.3, figures 4 and 5)."""

from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

from prefold.common.errors import UnknownName
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.layouts import Collective, Layout, chips_gathered, rest_axes
from prefold.plan.cost.workload import Workload, bytes_of
from prefold.plan.errors import Infeasible
from prefold.plan.model.shape import Shape

Sharding = Literal["head", "batch"]
SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)


@dataclass(frozen=True)
class Ways:
    """Groups of chips that hold other sequences, and chips of a group that hold other heads."""

    batch: int
    heads: int


def ways(sharding: Sharding, layout: Layout, mesh: Mesh) -> Ways:
    """Return how attention is split: a layout that gathers weights has split the batch over those chips already."""
    if sharding not in SHARDINGS:
        raise UnknownName("sharding of attention", sharding, list(SHARDINGS))
    if sharding == "batch":
        return Ways(mesh.chips, 1)
    gathered = chips_gathered(layout, mesh)
    return Ways(gathered, mesh.chips // gathered)


def shardings(layout: Layout, mesh: Mesh) -> list[Sharding]:
    """Return those that differ: alone, a chip has all heads; where all weights are gathered, the batch is split."""
    if mesh.chips == 1:
        return ["head"]
    return ["batch"] if chips_gathered(layout, mesh) == mesh.chips else ["head", "batch"]


def require_sequences(sharding: Sharding, mesh: Mesh, batch: int) -> None:
    """Raise ``Infeasible`` for fewer sequences than the smallest axis has chips: nothing is gained (appendix D)."""
    smallest = min((axis for axis in (mesh.x, mesh.y, mesh.z) if axis > 1), default=1)
    if sharding == "batch" and batch < smallest:
        needed = f"a sequence for each of the {smallest} chips along the shortest axis of the mesh {mesh}"
        raise Infeasible(
            f"batch-sharded attention needs {needed}: batch {batch} is too small; batch {smallest} would do"
        )


def kv_width_per_chip(shape: Shape, heads: int) -> float:
    """Values that a chip keeps of a token in one layer where heads are split ``heads`` ways.

    A head is not split further: with fewer of them than chips, some are kept more than once, and a cache that all heads
    share is kept whole.
    """
    if shape.latent:
        return shape.key_value_width
    return ceil(shape.num_key_value_heads / heads) * shape.key_value_width / shape.num_key_value_heads


def kv_tokens(workload: Workload, sequences: int, window: int | None = None) -> float:
    """Tokens that the caches of ``sequences`` hold in a layer; a prefix that branches share once for all of them."""
    seen = workload.seen(window)
    own = sequences * seen
    if not workload.shares_reads or workload.branches == 1:
        return own
    prefix = max(0, workload.shared_prefix - (workload.context - seen))
    return own - (sequences - ceil(sequences / workload.branches)) * prefix


def kv_bytes(shape: Shape, workload: Workload, split: Ways) -> float:
    """Bytes of the KV cache on a chip; layers with a window keep no more than that, and an encoder keeps nothing."""
    if not shape.decodes:
        return 0
    sequences = ceil(workload.batch / split.batch)
    tokens = sum(layers * kv_tokens(workload, sequences, window) for layers, window in shape.layers_by_window)
    return tokens * kv_width_per_chip(shape, split.heads) * bytes_of(workload.kv)


def moves(shape: Shape, sharding: Sharding, layout: Layout, mesh: Mesh, tokens: float) -> list[Collective]:
    """Return what is sent in one layer to split the batch for attention, and after it: two all-to-alls (figure 5b)."""
    over = mesh.along(rest_axes(layout))
    if sharding == "head" or not over:
        return []
    there, back = shape.query_width + shape.key_value_width, shape.value_width
    return [Collective("all-to-all", over, tokens * values / mesh.chips) for values in (there, back)]


def score_flops(shape: Shape, workload: Workload) -> float:
    """Operations of the scores and of the values' sum: 2 for each key, query and value; the paper leaves them out."""
    if shape.latent and workload.phase == "decode":
        per_head = 2 * shape.latent.kv_lora_rank + shape.latent.qk_rope_head_dim
    else:
        per_head = (shape.query_width + shape.value_width) // shape.num_attention_heads
    keys = sum(layers * _keys(shape, workload, window) for layers, window in shape.layers_by_window)
    return 2 * shape.num_attention_heads * per_head * workload.tokens * keys


def _keys(shape: Shape, workload: Workload, window: int | None) -> float:
    """Keys that a token attends to, on average: those up to its own, or all of them in an encoder."""
    return workload.keys_per_token(window) if shape.decodes else workload.seen(window)
