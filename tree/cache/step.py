"""One forward pass over the leaves of a cache: which rows gain how many tokens, and where these lie."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from prefold.tree.cache.grouping import Work, depth_first, make_work
from prefold.tree.cache.layers import LayerStore
from prefold.tree.cache.live import Live, Move
from prefold.tree.cache.masks import Window


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of the batch that gain equally many tokens, in depth-first order of their leaves."""

    rows: tuple[int, ...]
    leaves: tuple[Live, ...]
    new: int
    _works: dict[tuple[Window | None, torch.device], Work] = field(default_factory=dict)
    _slots: dict[torch.device, list[tuple[int, torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    def work(self, window: Window | None, device: torch.device) -> Work:
        """Return what these rows attend to; layers with the same window share it."""
        if (window, device) not in self._works:
            self._works[window, device] = make_work(self.leaves, self.new, window, device)
        return self._works[window, device]

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """Return the new tokens of these rows, ``[rows, heads, new, width]``, of those of the batch."""
        if self.new < states.shape[2]:
            states = states[:, :, -self.new :]
        if self.rows == tuple(range(states.shape[0])):
            return states
        return states[torch.tensor(self.rows, device=states.device)]

    def store(self, layer: LayerStore, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the new tokens of these rows at the end of their leaves."""
        new = (self.pick(keys), self.pick(values))
        if self.new == 1:
            self._scatter(layer, new)
            return
        for row, leaf in enumerate(self.leaves):
            extent, begin, end = _new_slots(leaf, self.new)
            for target, source in zip(layer.extent(extent), new, strict=True):
                target[:, begin:end] = source[row]

    def _scatter(self, layer: LayerStore, new: tuple[torch.Tensor, torch.Tensor]) -> None:
        for extent, slots, rows in self._single_slots(new[0].device):
            for target, source in zip(layer.extent(extent), new, strict=True):
                picked = source if len(rows) == len(source) else source[rows]
                target.index_copy_(1, slots, picked.squeeze(2).transpose(0, 1))

    def _single_slots(self, device: torch.device) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        if device not in self._slots:
            found: dict[int, list[tuple[int, int]]] = {}
            for row, leaf in enumerate(self.leaves):
                extent, begin, _ = _new_slots(leaf, 1)
                found.setdefault(extent, []).append((begin, row))
            tensors = {extent: torch.tensor(pairs, device=device) for extent, pairs in found.items()}
            self._slots[device] = [(extent, pairs[:, 0], pairs[:, 1]) for extent, pairs in tensors.items()]
        return self._slots[device]


def _new_slots(leaf: Live, new: int) -> tuple[int, int, int]:
    if leaf.run is None:
        raise RuntimeError("a leaf with new tokens has no pages")
    end = leaf.run.start + leaf.length
    return leaf.run.extent, end - new, end


@dataclass(frozen=True, eq=False)
class Step:
    """A forward pass of ``columns`` new columns; each row that is stored stands for ``copies`` rows of the batch."""

    columns: int
    copies: int
    parts: tuple[Part, ...]
    moves: Sequence[Move]

    def whole(self, batch: int) -> bool:
        """Return whether there is one part, which is the batch."""
        first = self.parts[0]
        return len(self.parts) == 1 and first.new == self.columns and first.rows == tuple(range(batch))


def make_step(columns: int, copies: int, leaves: Sequence[Live], new: Sequence[int], moves: Sequence[Move]) -> Step:
    """Divide rows by the number of their new tokens; ``leaves`` and ``new`` are those of every copied row's first."""
    parts = []
    for count in sorted(set(new) - {0}):
        rows = [row for row, each in enumerate(new) if each == count]
        order = [rows[index] for index in depth_first([leaves[row] for row in rows])]
        parts.append(Part(tuple(row * copies for row in order), tuple(leaves[row] for row in order), count))
    return Step(columns, copies, tuple(parts), moves)
