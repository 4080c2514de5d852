"""The chips of a mesh, as one process sees them: what they split, and what they exchange."""

import torch.distributed._functional_collectives as functional
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from benchmarks.collectives_states import AXES, Placements

_FLAT = ("x", "yx", "zyx", "zy", "z")


class Chips:
    """Processes along z, y and x; those next to each other along x have ranks next to each other."""

    def __init__(self, mesh: tuple[int, int, int]) -> None:
        """Join a mesh of so many along x, y and z; every process has to do so at once."""
        self.mesh = init_device_mesh("cpu", mesh[::-1], mesh_dim_names=tuple(AXES))
        self.line = init_device_mesh("cpu", (self.mesh.size(),))
        # DTensor sends over several axes at once where their mesh is there already, flat.
        self._flat = {
            axes: self.mesh[tuple(axes)]._flatten(axes) if len(axes) > 1 else self.mesh[axes] for axes in _FLAT
        }

    def split(self, tensor: Tensor, placements: Placements) -> DTensor:
        """Return a tensor that all have, of which each keeps its shard; nothing is sent."""
        return distribute_tensor(tensor, self.mesh, placements, src_data_rank=None)

    def joined(self, shard: Tensor, placements: Placements) -> DTensor:
        """Return the tensor whose shards these are; nothing is sent."""
        return DTensor.from_local(shard, self.mesh, placements, run_check=False)

    def to_sequences(self, shard: Tensor, axes: str) -> Tensor:
        """Exchange columns of all sequences for all columns of some sequences: ``[batch / K, length, width * K]``."""
        size = self._flat[axes].size()
        columns: Tensor = self._exchange(shard.contiguous(), axes).unflatten(0, (size, -1))
        return columns.movedim(0, 2).flatten(2)

    def to_columns(self, shard: Tensor, axes: str) -> Tensor:
        """Exchange all columns of some sequences for columns of all sequences: ``[batch * K, length, width / K]``."""
        pieces = shard.unflatten(2, (self._flat[axes].size(), -1)).movedim(2, 0).flatten(0, 1)
        return self._exchange(pieces.contiguous(), axes)

    def _exchange(self, pieces: Tensor, axes: str) -> Tensor:
        """Send a K-th along the first dimension to every chip of the group."""
        mesh = self._flat[axes]
        even = [pieces.shape[0] // mesh.size()] * mesh.size()
        got: Tensor = functional.wait_tensor(functional.all_to_all_single(pieces, even, even, mesh.get_group()))
        return got
