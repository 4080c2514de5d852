"""Keys and values of one layer, in the slots of the pool's extents."""

from collections.abc import Sequence
from typing import Any

import torch

from prefold.tree.cache.live import Move
from prefold.tree.cache.pages import Pages

Tensors = tuple[torch.Tensor, torch.Tensor]


class LayerStore:
    """Keys ``[kv_heads, slots, head_dim]`` and values, of the same or another width, for each extent of the pool."""

    def __init__(self, pages: Pages, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pages = pages
        self._like = (keys, values)
        self._tensors: dict[int, Tensors] = {}
        self.steps = 0
        self.heads = int(keys.shape[1])
        self.kind = (keys.dtype, keys.device, keys.shape[1], keys.shape[-1], values.shape[-1])
        self.token_bytes = sum(each.shape[1] * each.shape[-1] * each.element_size() for each in self._like)
        self._like = (keys[:0], values[:0])  # what the tensors of an extent are to be like, and no token

    def extent(self, name: int) -> Tensors:
        """Return the keys and values of an extent, ``[kv_heads, slots, width]``."""
        if name not in self._tensors:
            slots = self._pages.slots[name]
            made = [each.new_empty(each.shape[1], slots, each.shape[-1]) for each in self._like]
            self._tensors[name] = (made[0], made[1])
        return self._tensors[name]

    def settle(self, moves: Sequence[Move]) -> None:
        """Copy what segments have moved, then let go of extents that are gone."""
        for move in moves:
            for source, target in zip(self.extent(move.extent), self.extent(move.to_extent), strict=True):
                moved = source[:, move.start : move.start + move.tokens]
                target[:, move.to_start : move.to_start + move.tokens] = moved
        for name in self._tensors.keys() - self._pages.extents.keys():
            del self._tensors[name]

    def view(self, name: int, start: int, tokens: int, count: int, stride: int) -> Tensors:
        """Return ``count`` runs of slots, each ``stride`` behind the last, ``[count, kv_heads, tokens, width]``."""
        return _runs(self.extent(name)[0], start, tokens, count, stride), _runs(
            self.extent(name)[1], start, tokens, count, stride
        )

    @property
    def bytes_held(self) -> int:
        """Bytes of its tensors."""
        return sum(each.numel() * each.element_size() for pair in self._tensors.values() for each in pair)

    def same(self, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Return whether new keys and values are like those that are stored."""
        found: tuple[Any, ...] = (keys.dtype, keys.device, keys.shape[1], keys.shape[-1], values.shape[-1])
        return found == self.kind


def _runs(tensor: torch.Tensor, start: int, tokens: int, count: int, stride: int) -> torch.Tensor:
    heads, _, width = tensor.shape
    of_head, of_slot, of_value = tensor.stride()
    shape, strides = (count, heads, tokens, width), (stride * of_slot, of_head, of_slot, of_value)
    return tensor.as_strided(shape, strides, tensor.storage_offset() + start * of_slot)
