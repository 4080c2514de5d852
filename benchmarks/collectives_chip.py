"""One chip's share of a block in a layout: PyTorch's distributed tensors move what has to move.

DTensor splits, gathers and sums, and gathers weights over some axes; ``fully_shard`` gathers them over all. Where the
dimension that is split changes, DTensor on gloo gathers everything and cuts, so ``torch.distributed``'s functional
all-to-all is used there.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from benchmarks.collectives_block import ACTIVE, Weights, activated, attended, columns
from benchmarks.collectives_ledger import Ledger
from benchmarks.collectives_mesh import Chips
from benchmarks.collectives_states import Placements, states
from benchmarks.collectives_task import Task

_ATTENTION = ("queries", "keys", "values")
_OUT = ("attention_out", "down")
_COLUMNS: Placements = (Shard(2),) * 3
Split = dict[str, DTensor]


class _Matrices(nn.Module):
    """Matrices that are read together; ``fully_shard`` gathers what it has split."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights.values())

    def forward(self, *read: Tensor) -> tuple[Tensor, ...]:
        return tuple(each @ weight.to(ACTIVE) for each, weight in zip(read, self.weights, strict=True))


class Block:
    """A block on chips, of which this is one."""

    def __init__(self, task: Task, weights: Weights, chips: Chips, ledger: Ledger) -> None:
        """Take a task and all weights, of which shards are kept; what is sent is entered into the ledger."""
        self.task, self.model, self.chips, self.ledger = task, task.model, chips, ledger
        self.states = states(task.layout, task.mesh[0])
        self.embedding = weights["embedding"].to(ACTIVE)
        self.table = columns(self.model, weights) if task.folded else {}
        self.weights = dict(weights)
        if task.fault == "shard":
            self.weights["attention_out"] = weights["attention_out"].roll(self.model.head_dim, 0)

    def __call__(self, tokens: Tensor) -> DTensor:
        """Return the residual behind the block, ``[batch, length, blocks, E / blocks]``."""
        joined = self.model.parallel and not self.task.folded
        with self.ledger.part("attention + FFN" if joined else "attention"):
            hidden, inner = self._looked_up(tokens) if self.task.folded else self._entered(tokens, joined=joined)
            outer = {"attention_out": self._attention(inner)}
            if joined:
                outer["down"] = self._activated(inner)
            hidden = self._added(hidden, self._leave(outer))
        return hidden if self.model.parallel else self._ffn(hidden)

    def _ffn(self, hidden: DTensor) -> DTensor:
        with self.ledger.part("FFN"):
            inner = self._enter(hidden, self.model.ffn_in)
            return self._added(hidden, self._leave({"down": self._activated(inner)}))

    def _activated(self, inner: Split) -> DTensor:
        here = {name: inner[name].to_local() for name in self.model.ffn_in}
        return self.chips.joined(activated(self.model, here), self.states.inner)

    def _added(self, hidden: DTensor, more: DTensor) -> DTensor:
        return self.chips.joined(hidden.to_local() + more.to_local(), self.states.residual)

    def _entered(self, tokens: Tensor, *, joined: bool) -> tuple[DTensor, Split]:
        """Return the residual, and what the matrices on the way in make of it."""
        hidden = self.embedding[tokens].unflatten(-1, (self.states.blocks, -1))
        split = self.chips.split(hidden, self.states.residual)
        return split, self._enter(split, (*_ATTENTION, *(self.model.ffn_in if joined else ())))

    def _enter(self, hidden: DTensor, names: tuple[str, ...]) -> Split:
        if self.task.fault == "gather":
            hidden.redistribute(placements=(Replicate(),) * 3)
        gathered = cast(DTensor, hidden.redistribute(placements=self.states.gathered).flatten(2))
        products = self._products(dict.fromkeys(names, self._normed(gathered)))
        return {name: products[name].redistribute(placements=self._inner(name)) for name in names}

    def _leave(self, outer: Split) -> DTensor:
        """Sum what the matrices on the way out return, and split it as the residual is."""
        read = {name: outer[name].redistribute(placements=self.states.outer) for name in outer}
        first, *others = self._products(read).values()
        total = sum(others, start=first).unflatten(-1, (self.states.blocks, -1))
        return _scattered(cast(DTensor, total), self.states.residual)

    def _normed(self, gathered: DTensor) -> DTensor:
        """Divide by the root of the mean square; where a chip has a part of E, the sum of squares is sent for it."""
        here, placements = gathered.to_local(), self.states.gathered
        parts = tuple(Partial() if each == Shard(2) else each for each in placements)
        whole = tuple(Replicate() if each == Shard(2) else each for each in placements)
        with self.ledger.part("norm"):
            squares = self.chips.joined(here.square().sum(-1, keepdim=True), parts).redistribute(placements=whole)
        return self.chips.joined(here * (squares.to_local() / self.model.hidden + 1e-6).rsqrt(), placements)

    def _products(self, read: Split) -> Split:
        if self.task.layout == "wg-xyz":
            return self._fully_sharded(read)
        return {name: cast(DTensor, read[name] @ self._used(name)) for name in read}

    def _fully_sharded(self, read: Split) -> Split:
        """Multiply by weights that ``fully_shard`` has split over all chips, and gathers for that."""
        matrices = _Matrices({name: self.weights[name] for name in read})
        fully_shard(matrices, mesh=self.chips.line)
        placements = next(iter(read.values())).placements
        found = matrices(*(each.to_local() for each in read.values()))
        return {name: self.chips.joined(product, placements) for name, product in zip(read, found, strict=True)}

    def _used(self, name: str) -> DTensor:
        """Return a matrix as its layout reads it, gathered where that is so."""
        kept = self.states
        stored, used = (kept.stored_out, kept.used_out) if name in _OUT else (kept.stored_in, kept.used_in)
        if self._is_single(name):
            stored, used = kept.stored_single, kept.used_single
        weight = self.chips.split(self.weights[name], stored).redistribute(placements=used)
        return self.chips.joined(weight.to_local().to(ACTIVE), used)

    def _is_single(self, name: str) -> bool:
        """Whether every chip of a sequence needs what a matrix makes: keys and values that all heads share."""
        return name in _ATTENTION[1:] and self.task.attention == "head" and self.model.key_value_heads == 1

    def _inner(self, name: str) -> Placements:
        return self.states.single if self._is_single(name) else self.states.inner

    def _attention(self, inner: Split) -> DTensor:
        """Attend over the heads that are here, or over the sequences that are sent here for it."""
        rest = self.states.rest_axes
        here = {name: inner[name].to_local() for name in _ATTENTION}
        if self.task.attention == "head" or not rest:
            return self.chips.joined(attended(self.model, here), self.states.inner)
        with self.ledger.part("all-to-all"):
            moved = {name: self.chips.to_sequences(here[name], rest) for name in here}
            back = self.chips.to_columns(attended(self.model, moved), rest)
        return self.chips.joined(back, self.states.inner)

    def _looked_up(self, tokens: Tensor) -> tuple[DTensor, Split]:
        """Return what the matrices on the way in would have returned; the table is split by columns over all chips."""
        with self.ledger.part("look-up"):
            found = {name: self._column(self.table[name][tokens]) for name in _ATTENTION}
            inner = {name: found[name].redistribute(placements=self._inner(name)) for name in found}
            return self._residual(tokens), inner

    def _column(self, rows: Tensor) -> DTensor:
        """Send a chip's share of some tokens' rows to where the layout wants it."""
        shard = self.chips.split(rows, _COLUMNS).to_local()
        if self.states.gathered_axes:
            shard = self.chips.to_sequences(shard, self.states.gathered_axes)
        return self.chips.joined(shard, self.states.inner)

    def _residual(self, tokens: Tensor) -> DTensor:
        """Return the residual, which in a parallel block has the FFN in it already."""
        rows = self.table["residual"][tokens] + (self.table["FFN"][tokens] if self.model.parallel else 0)
        if self.states.gathered_axes:
            return self.chips.joined(self._column(rows).to_local().unsqueeze(2), self.states.residual)
        return self.chips.split(rows.unflatten(-1, (self.states.blocks, -1)), self.states.residual)


def _scattered(total: DTensor, placements: Placements) -> DTensor:
    """Sum and split over one axis after the other: asked for all at once, DTensor starts with an all-reduce."""
    for count in range(1, len(placements) + 1):
        total = total.redistribute(placements=(*placements[:count], *total.placements[count:]))
    return total


def furthest(one: Tensor, other: Tensor) -> float:
    """Return the largest difference between two tensors."""
    return float((one - other).abs().max()) if torch.isfinite(one).all() else float("inf")
