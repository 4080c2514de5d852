"""The pool of pages: which of them hold which segment, and the keys and values that each layer has in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefold.tree.errors import OutOfPages

# Without a limit, the pool grows by what is asked for and at least this part of what it has.
_GROWTH = 16
Tensors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PageRun:
    """Consecutive slots for tokens, ``[start, start + capacity)``, in one extent of the pool."""

    extent: int
    start: int
    capacity: int


class Extent:
    """A part of the pool that is one tensor in every layer: its size in pages, and what of it is free.

    ``given``: its tensors were there before, and hold one segment.
    """

    def __init__(self, pages: int, *, given: bool = False) -> None:
        self.pages, self.given = pages, given
        self.free: list[tuple[int, int]] = [] if given else [(0, pages)]

    def take(self, pages: int, at: int | None = None) -> int | None:
        """Take the first free run of so many pages, or the one ``at``; returns its start, None if there is none."""
        for index, (start, size) in enumerate(self.free):
            if size >= pages and at in (None, start):
                self.free[index : index + 1] = [(start + pages, size - pages)] if size > pages else []
                return start
        return None

    def give(self, start: int, pages: int) -> None:
        """Take pages back and join them with their free neighbours."""
        joined: list[tuple[int, int]] = []
        for first, size in sorted([*self.free, (start, pages)]):
            if joined and joined[-1][0] + joined[-1][1] == first:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((first, size))
        self.free = joined

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is taken."""
        return self.free == [(0, self.pages)]


class Pages:
    """The pages of all segments; with a limit they are one extent, else extents come and go.

    ``size`` is tokens for each page; ``limit`` is pages, any number if None.
    """

    def __init__(self, size: int = 16, limit: int | None = None) -> None:
        self.size, self.limit = size, limit
        self.extents: dict[int, Extent] = {}
        self.slots: list[int] = []  # that each extent has room for, also those that are gone

    @property
    def held(self) -> int:
        """Pages that hold segments."""
        free = sum(size for extent in self.extents.values() for _, size in extent.free)
        return self.total - free

    @property
    def total(self) -> int:
        """Pages that there are in memory."""
        return sum(extent.pages for extent in self.extents.values())

    def take(self, tokens: int, copies: int = 1) -> list[PageRun]:
        """Take runs for as many tokens each, side by side where possible; ``OutOfPages`` without such free pages."""
        pages = max(1, -(-tokens // self.size))
        try:
            extent, start = self._take(pages * copies)
        except OutOfPages:
            if copies == 1:
                raise
            return self._take_singly(pages, copies)
        return [self._run(extent, start + index * pages, pages) for index in range(copies)]

    def _take_singly(self, pages: int, copies: int) -> list[PageRun]:
        taken: list[PageRun] = []
        try:
            for _ in range(copies):
                taken.append(self._run(*self._take(pages), pages))
        except OutOfPages:
            for run in taken:
                self.give(run)
            raise
        return taken

    def _run(self, extent: int, start: int, pages: int) -> PageRun:
        return PageRun(extent, start * self.size, pages * self.size)

    def _take(self, pages: int) -> tuple[int, int]:
        for name, extent in self.extents.items():
            start = extent.take(pages)
            if start is not None:
                return name, start
        if self.limit is not None and (own := [each for each in self.extents.values() if not each.given]):
            held = self.held - self.total + sum(each.pages for each in own)
            raise OutOfPages(f"{pages} more pages in one piece: {held} of {self.limit} are taken (max_pages)")
        return self._add_extent(pages)

    def _add_extent(self, pages: int) -> tuple[int, int]:
        if self.limit is not None and pages > self.limit:
            raise OutOfPages(f"{pages} pages are needed, and there are {self.limit} (max_pages)")
        size = self.limit or max(pages, self.total // _GROWTH)
        name = len(self.slots)
        self.slots.append(size * self.size)
        self.extents[name] = Extent(size)
        start = self.extents[name].take(pages)
        return name, start or 0

    def adopt(self, tokens: int) -> PageRun:
        """Return a run of so many tokens whose tensors there are already; a limit does not count them."""
        name = len(self.slots)
        self.slots.append(tokens)
        self.extents[name] = Extent(-(-tokens // self.size), given=True)
        return PageRun(name, 0, tokens)

    def extend(self, run: PageRun, tokens: int) -> PageRun | None:
        """Return the run with room for as many tokens, if the pages behind it are free; else None."""
        more = -(-(tokens - run.capacity) // self.size)
        if self.extents[run.extent].take(more, at=(run.start + run.capacity) // self.size) is None:
            return None
        return PageRun(run.extent, run.start, run.capacity + more * self.size)

    def give(self, run: PageRun) -> None:
        """Take a run back; an extent that holds nothing any more is gone, unless the pool has a limit."""
        extent = self.extents[run.extent]
        if not extent.given:
            extent.give(run.start // self.size, run.capacity // self.size)
        if extent.given or (extent.is_empty and self.limit is None):
            del self.extents[run.extent]


@dataclass(frozen=True, slots=True)
class Move:
    """A copy in every layer, from slot ``start`` of one extent to slot ``to_start`` of another."""

    extent: int
    start: int
    to_extent: int
    to_start: int
    tokens: int


class LayerStore:
    """Keys ``[kv_heads, slots, head_dim]`` and values, of the same or another width, for each extent of the pool."""

    def __init__(self, pages: Pages, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pages = pages
        self._like = (keys[:0], values[:0])  # type and shape of an extent's tensors, and no token
        self._tensors: dict[int, Tensors] = {}
        self.steps = 0
        self.heads = int(keys.shape[1])
        self.token_bytes = sum(each.shape[1] * each.shape[-1] * each.element_size() for each in self._like)

    def extent(self, name: int) -> Tensors:
        """Return the keys and values of an extent, ``[kv_heads, slots, width]``."""
        if name not in self._tensors:
            slots = self._pages.slots[name]
            made = [each.new_empty(each.shape[1], slots, each.shape[-1]) for each in self._like]
            self._tensors[name] = (made[0], made[1])
        return self._tensors[name]

    def adopt(self, name: int, tensors: Tensors) -> None:
        """Let an extent have keys and values that there are already, ``[kv_heads, slots, width]``."""
        self._tensors[name] = tensors

    def apply_moves(self, moves: Sequence[Move]) -> None:
        """Copy tokens that segments have moved, then let go of extents that are gone."""
        for move in moves:
            for source, target in zip(self.extent(move.extent), self.extent(move.to_extent), strict=True):
                moved = source[:, move.start : move.start + move.tokens]
                target[:, move.to_start : move.to_start + move.tokens] = moved
        for name in self._tensors.keys() - self._pages.extents.keys():
            del self._tensors[name]

    def view(self, name: int, start: int, tokens: int, count: int, stride: int) -> Tensors:
        """Return ``count`` runs of slots, each ``stride`` behind the last, ``[count, kv_heads, tokens, width]``."""
        keys, values = self.extent(name)
        return _runs(keys, start, tokens, count, stride), _runs(values, start, tokens, count, stride)

    @property
    def bytes_held(self) -> int:
        """Bytes of its tensors."""
        return sum(each.numel() * each.element_size() for pair in self._tensors.values() for each in pair)

    def same(self, keys: torch.Tensor, values: torch.Tensor) -> bool:
        """Return whether new keys and values are like those that are stored."""
        return _kind(keys, values) == _kind(*self._like)


def _kind(keys: torch.Tensor, values: torch.Tensor) -> tuple[Any, ...]:
    return keys.dtype, keys.device, keys.shape[1], keys.shape[-1], values.shape[-1]


def _runs(tensor: torch.Tensor, start: int, tokens: int, count: int, stride: int) -> torch.Tensor:
    heads, _, width = tensor.shape
    of_head, of_slot, of_value = tensor.stride()
    shape, strides = (count, heads, tokens, width), (stride * of_slot, of_head, of_slot, of_value)
    return tensor.as_strided(shape, strides, tensor.storage_offset() + start * of_slot)
