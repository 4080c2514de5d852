"""The case of an estimate: a model on chips in a layout, with a workload, folded or not."""

from dataclasses import dataclass

from prefold.plan.chip.hardware import Chip, Mesh
from prefold.plan.cost.attention import Sharding, Ways, moves, require_sequences, ways
from prefold.plan.cost.fold import Fold, Placement
from prefold.plan.cost.layouts import Collective, Layout, Part, collectives, require_batch
from prefold.plan.cost.parts import all_parts, look_up
from prefold.plan.cost.workload import Workload
from prefold.plan.errors import Infeasible
from prefold.plan.model.shape import Shape


@dataclass(frozen=True)
class Case:
    """A forward pass and where it runs; ``fold`` is None for the source."""

    shape: Shape
    chip: Chip
    mesh: Mesh
    workload: Workload
    layout: Layout
    sharding: Sharding
    fold: Fold | None = None

    def require(self) -> None:
        """Raise ``Infeasible`` where the batch cannot be shared out like that."""
        require_batch(self.layout, self.mesh, self.workload.batch)
        require_sequences(self.sharding, self.mesh, self.workload.batch)

    @property
    def placement(self) -> Placement | None:
        """The place of the table; None without one. A host's memory may be the chip's own."""
        if self.fold is None or (self.fold.placement == "host" and self.chip.shares_memory):
            return "device" if self.fold else None
        return self.fold.placement

    @property
    def is_torus(self) -> bool:
        """Whether the chips' links are made for a mesh of so many; a switch lets any of them talk to any."""
        return self.mesh.chips in self.chip.axes

    @property
    def is_tensor_parallel(self) -> bool:
        """Whether engines have the layout: one chip, or heads and inner values split evenly, as they want it."""
        even = self.shape.num_attention_heads % self.mesh.chips == 0
        return self.mesh.chips == 1 or ((self.layout, self.sharding) == ("1d-ws", "head") and even)

    @property
    def split(self) -> Ways:
        """How attention is split."""
        return ways(self.sharding, self.layout, self.mesh)

    @property
    def state_split(self) -> Ways:
        """How a state is split: over its channels, and over the sequences where weights are gathered."""
        return ways("head", self.layout, self.mesh)

    def sent_by_layer(self) -> list[tuple[int, list[Collective]]]:
        """Return collectives with the number of layers that run them; a folded first layer is the first entry."""
        tokens = self.workload.tokens
        by_head = self.sharding == "head"
        moved = moves(self.shape, self.sharding, self.layout, self.mesh, tokens)
        found = [
            (count, [c for part in parts for c in self._sent(part)] + (moved if any(p.attends for p in parts) else []))
            for count, parts in all_parts(self.shape, tokens, folded=self.fold is not None, by_head=by_head)
        ]
        if self.fold and self.placement == "device":
            found[0][1].extend(look_up(self.shape, self.layout, self.mesh, tokens, by_head=by_head))
        return found

    def _sent(self, part: Part) -> list[Collective]:
        return collectives(self.layout, self.mesh, self.workload.tokens, self.shape.hidden_size, part)


def require_phase(shape: Shape, workload: Workload) -> None:
    """Raise ``Infeasible`` for a decode step of an encoder."""
    if workload.phase == "decode" and not shape.decodes:
        raise Infeasible(f"{shape.name}: an encoder has no decode step; its one pass is a prefill")
