"""One decode step: the queries that see each run of slots (DeFT's query groups of a node), and where new tokens go."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from prefold.tree.cache.live import Live
from prefold.tree.cache.masks import Window
from prefold.tree.cache.pool import LayerStore, Move


@dataclass(frozen=True, slots=True)
class SegmentView:
    """Tokens of one segment that the ordered rows ``[low, high)`` see; ``position`` is that of the first."""

    segment: Live
    low: int
    high: int
    skipped: int
    tokens: int

    @property
    def position(self) -> int:
        """Tokens before the first on its path."""
        return self.segment.start + self.skipped

    @property
    def slot(self) -> int:
        """Where its first token lies."""
        return self.segment.run.start + self.skipped if self.segment.run else 0


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Runs of as many tokens, at even distances in one extent, each seen by ``width`` rows: one call reads them.

    ``rows``: the ordered rows, run after run; ``contiguous`` if they are consecutive from ``first`` on.
    ``mask``: which keys each row's queries see, ``[width, queries, tokens]``, of a group of one; None for all.
    """

    extent: int
    slot: int
    stride: int
    count: int
    tokens: int
    width: int
    rows: tuple[int, ...]
    mask: torch.Tensor | None = None

    @property
    def contiguous(self) -> bool:
        """Whether the rows are consecutive."""
        return self.rows[-1] - self.rows[0] == len(self.rows) - 1 and list(self.rows) == sorted(self.rows)


@dataclass(frozen=True)
class Work:
    """All groups of a step, and which of their pairs belong to which row."""

    groups: tuple[RowGroup, ...]
    rows: int
    own: bool
    device: torch.device

    @cached_property
    def index(self) -> torch.Tensor | None:
        """Pairs of each row, as :func:`prefold.tree.cache.partial.merge` takes them."""
        everyone = tuple(range(self.rows))
        if all(group.rows == everyone and group.mask is None for group in self.groups):
            return None
        pairs: list[list[int]] = [[] for _ in everyone]
        for number, row in enumerate(row for group in self.groups for row in group.rows):
            pairs[row].append(number)
        count = sum(len(group.rows) for group in self.groups)
        if self.own:  # each row's own new tokens come last
            pairs = [[*each, count + row] for row, each in enumerate(pairs)]
            count += self.rows
        longest = max(map(len, pairs), default=0)
        padded = [each + [count] * (longest - len(each)) for each in pairs]
        return torch.tensor(padded, dtype=torch.long, device=self.device).view(self.rows, longest)

    @cached_property
    def picks(self) -> tuple[torch.Tensor | None, ...]:
        """Rows to pick for each group, where they are not consecutive."""
        made = [None if group.contiguous else torch.tensor(group.rows, device=self.device) for group in self.groups]
        return tuple(made)

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are read."""
        return sum(group.tokens * group.count for group in self.groups)


def depth_first(leaves: Sequence[Live]) -> list[int]:
    """Return the order of rows in which the rows below every segment are consecutive."""
    paths = [[segment.number for segment in leaf.path()] for leaf in leaves]
    return sorted(range(len(leaves)), key=paths.__getitem__)


def make_work(leaves: Sequence[Live], new: int, window: Window | None, device: torch.device) -> Work:
    """Group what the ``new`` last tokens of each leaf, in depth-first order, attend to.

    One new token attends to everything up to itself; several attend to one another by another way (``own``).
    """
    own = new > 1
    views = windowed(views_of(leaves, new if own else 0), leaves, new, window)
    together: dict[tuple[int, int, int], list[SegmentView]] = defaultdict(list)
    groups: list[RowGroup] = []
    for view in views:
        mask = _mask(view, leaves, new, window, device)
        if mask is not None:
            groups.append(_group([view], mask))
        elif view.segment.run is not None:
            together[view.segment.run.extent, view.tokens, view.high - view.low].append(view)
    for alike in together.values():
        groups.extend(_group(run) for run in _evenly_spaced(alike))
    return Work(tuple(groups), len(leaves), own, device)


def views_of(leaves: Sequence[Live], without: int) -> list[SegmentView]:
    """Return every segment above the rows with the rows below it; the last tokens of leaves are left out."""
    below: dict[Live, list[int]] = {}
    for row, leaf in enumerate(leaves):
        at: Live | None = leaf
        while at is not None:
            found = below.setdefault(at, [row, row])
            found[1] = row + 1
            at = at.parent
    ends = set(leaves) if without else set()
    lengths = {segment: segment.length - without * (segment in ends) for segment in below}
    return [SegmentView(each, low, high, 0, lengths[each]) for each, (low, high) in below.items() if lengths[each] > 0]


def windowed(
    views: Iterable[SegmentView], leaves: Sequence[Live], new: int, window: Window | None
) -> Iterable[SegmentView]:
    """Yield views without the tokens that no query sees."""
    if window is None:
        yield from views
        return
    for view in views:
        first = min(window.first(leaf.end - new) for leaf in leaves[view.low : view.high])
        skipped = max(0, first - view.segment.start)
        if skipped < view.tokens:
            yield SegmentView(view.segment, view.low, view.high, skipped, view.tokens - skipped)


def _mask(
    view: SegmentView, leaves: Sequence[Live], new: int, window: Window | None, device: torch.device
) -> torch.Tensor | None:
    """Return which tokens each query sees, ``[rows, queries, tokens]``; None if each sees all."""
    if window is None:
        return None
    rows = leaves[view.low : view.high]
    if max(window.first(leaf.end - 1) for leaf in rows) <= view.position:
        return None
    begins = torch.tensor([leaf.end - new for leaf in rows], device=device)[:, None] + torch.arange(new, device=device)
    positions = torch.arange(view.position, view.position + view.tokens, device=device)
    first: torch.Tensor = window.first(begins)
    return positions >= first[..., None]


def _evenly_spaced(views: list[SegmentView]) -> Iterable[list[SegmentView]]:
    views = sorted(views, key=lambda view: view.slot)
    run: list[SegmentView] = []
    for view in views:
        if len(run) > 1 and view.slot - run[-1].slot != run[1].slot - run[0].slot:
            yield run
            run = []
        run.append(view)
    if run:
        yield run


def _group(views: Sequence[SegmentView], mask: torch.Tensor | None = None) -> RowGroup:
    first = views[0]
    stride = views[1].slot - first.slot if len(views) > 1 else 0
    rows = tuple(row for view in views for row in range(view.low, view.high))
    extent = first.segment.run.extent if first.segment.run else 0
    return RowGroup(extent, first.slot, stride, len(views), first.tokens, first.high - first.low, rows, mask)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of the batch that gain equally many tokens, in depth-first order of their leaves."""

    rows: tuple[int, ...]
    leaves: tuple[Live, ...]
    new: int
    _works: dict[tuple[Window | None, torch.device], Work] = field(default_factory=dict)
    _slots: dict[torch.device, list[tuple[int, torch.Tensor, torch.Tensor]]] = field(default_factory=dict)

    def work(self, window: Window | None, device: torch.device) -> Work:
        """Return the groups that these rows attend to; layers with the same window share them."""
        if (window, device) not in self._works:
            self._works[window, device] = make_work(self.leaves, self.new, window, device)
        return self._works[window, device]

    def is_within(self, window: Window | None) -> bool:
        """Return whether a window reaches from every row's last new token to its first."""
        return window is None or all(window.first(leaf.end - 1) <= leaf.end - self.new for leaf in self.leaves)

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
    """A forward pass of ``columns`` new columns; each row that is stored stands for ``copies`` rows of the batch.

    ``order``: the columns of each row with its tokens last, ``[batch, columns]``; None where they lie so.
    """

    columns: int
    copies: int
    parts: tuple[Part, ...]
    moves: Sequence[Move]
    order: torch.Tensor | None = None

    def whole(self, batch: int) -> bool:
        """Return whether there is one part, which is the batch."""
        first = self.parts[0]
        return len(self.parts) == 1 and first.new == self.columns and first.rows == tuple(range(batch))


def tokens_last(padding: torch.Tensor) -> torch.Tensor | None:
    """Return an order of columns with each row's tokens last, ``[batch, columns]``; None where they lie so."""
    order = padding.long().argsort(dim=1, stable=True)
    return None if torch.equal(padding.gather(1, order), padding) else order


def make_step(
    columns: int,
    copies: int,
    leaves: Sequence[Live],
    new: Sequence[int],
    moves: Sequence[Move],
    order: torch.Tensor | None = None,
) -> Step:
    """Divide rows by the number of their new tokens; ``leaves`` and ``new`` are those of every copied row's first."""
    parts = []
    for count in sorted(set(new) - {0}):
        rows = [row for row, each in enumerate(new) if each == count]
        rows = [rows[index] for index in depth_first([leaves[row] for row in rows])]
        parts.append(Part(tuple(row * copies for row in rows), tuple(leaves[row] for row in rows), count))
    return Step(columns, copies, tuple(parts), moves, order)
