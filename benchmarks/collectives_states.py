"""How each layout of Pope et al. 2022 splits every tensor of a block over the mesh, as placements of DTensor.

The axes are z, y, x in that order, the last one the innermost: a tensor that is split over several of them along one
dimension is split over z first. The residual is ``[batch, length, blocks, E / blocks]``: in the 2D layout each block is
of one chip along x, since what is gathered over y and z must leave x alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch.distributed.tensor import Partial, Placement, Replicate, Shard

Placements = tuple[Placement, ...]
AXES = "zyx"
WHOLE, SUM = Replicate(), Partial()


@dataclass(frozen=True)
class States:
    """Placements over z, y and x.

    Attributes:
        blocks: that the residual's E is in.
        residual: between layers, ``[batch, length, blocks, E / blocks]``.
        gathered: what the matrices on the way in read, the same dimensions.
        stored_in: such a matrix, ``[in, out]``.
        used_in: such a matrix when it is read.
        inner: between the matrices, ``[batch, length, width]``.
        outer: what those on the way out read.
        stored_out: such a matrix.
        used_out: such a matrix when it is read.
        stored_single: a matrix of keys or values that one head makes for all.
        used_single: such a matrix when it is read.
        single: such keys or values, for attention over heads.
        gathered_axes: over which weights are gathered.
    """

    blocks: int
    residual: Placements
    gathered: Placements
    stored_in: Placements
    used_in: Placements
    inner: Placements
    outer: Placements
    stored_out: Placements
    used_out: Placements
    stored_single: Placements
    used_single: Placements
    single: Placements
    gathered_axes: str = ""

    @property
    def rest_axes(self) -> str:
        """Axes over which weights are not gathered."""
        return "".join(axis for axis in AXES if axis not in self.gathered_axes)


def _all(placement: Placement) -> Placements:
    return (placement,) * len(AXES)


def _stationary_1d() -> States:
    """E and F are split over all chips (section 3.2.1)."""
    return States(
        blocks=1,
        residual=_all(Shard(3)),
        gathered=_all(WHOLE),
        stored_in=_all(Shard(1)),
        used_in=_all(Shard(1)),
        inner=_all(Shard(2)),
        outer=_all(Shard(2)),
        stored_out=_all(Shard(0)),
        used_out=_all(Shard(0)),
        stored_single=_all(WHOLE),
        used_single=_all(WHOLE),
        single=_all(WHOLE),
    )


def _stationary_2d(chips_x: int) -> States:
    """E is split over x, F over y and z (section A.2.1)."""
    return States(
        blocks=chips_x,
        residual=(Shard(3), Shard(3), Shard(2)),
        gathered=(WHOLE, WHOLE, Shard(2)),
        stored_in=(Shard(1), Shard(1), Shard(0)),
        used_in=(Shard(1), Shard(1), Shard(0)),
        inner=_all(Shard(2)),
        outer=(Shard(2), Shard(2), WHOLE),
        stored_out=(Shard(0), Shard(0), Shard(1)),
        used_out=(Shard(0), Shard(0), Shard(1)),
        stored_single=(WHOLE, WHOLE, Shard(0)),
        used_single=(WHOLE, WHOLE, Shard(0)),
        single=_all(WHOLE),
    )


def _gathered(axes: str) -> States:
    """Weights are stored as in 2D and gathered over ``axes``, the batch is split over these (section A.2.2)."""

    def split(there: Placement, rest: Placement) -> Placements:
        return tuple(there if axis in axes else rest for axis in AXES)

    return States(
        blocks=1,
        residual=split(Shard(0), Shard(3)),
        gathered=split(Shard(0), WHOLE),
        stored_in=(Shard(1), Shard(1), Shard(0)),
        used_in=split(WHOLE, Shard(1)),
        inner=split(Shard(0), Shard(2)),
        outer=split(Shard(0), Shard(2)),
        stored_out=(Shard(0), Shard(0), Shard(1)),
        used_out=split(WHOLE, Shard(0)),
        stored_single=(WHOLE, WHOLE, Shard(0)),
        used_single=_all(WHOLE),
        single=split(Shard(0), WHOLE),
        gathered_axes=axes,
    )


def states(layout: str, chips_x: int) -> States:
    """Return how a layout splits a block."""
    made: dict[str, Callable[[], States]] = {
        "1d-ws": _stationary_1d,
        "2d-ws": lambda: _stationary_2d(chips_x),
        "wg-x": lambda: _gathered("x"),
        "wg-xy": lambda: _gathered("yx"),
        "wg-xyz": lambda: _gathered("zyx"),
    }
    return made[layout]()
