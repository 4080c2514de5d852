"""The live segments of a cache: their branches, their holders, and where their tokens lie."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from prefold.tree.cache.pool import Move, PageRun, Pages
from prefold.tree.errors import OutOfPages

# A longer segment is not moved to make room behind it: its branch goes on in a segment of its own.
MOVABLE = 1024
_SPARE = 4


@dataclass(eq=False, slots=True)
class Live:
    """A segment that something holds: rows that end in it, a user, or the segments that branch from it.

    ``start`` counts the tokens before it on its path.
    """

    number: int
    parent: "Live | None"
    start: int = 0
    length: int = 0
    run: PageRun | None = None
    holders: int = 0
    children: "list[Live]" = field(default_factory=list)

    @property
    def end(self) -> int:
        """Tokens from the root to its last."""
        return self.start + self.length

    def path(self) -> "list[Live]":
        """Return the segments from the root to this one."""
        found, at = [], self
        while at is not None:
            found.append(at)
            at = at.parent  # type: ignore[assignment]
        return found[::-1]


class LiveTree:
    """Segments of several trees, and the row of the batch that goes on in each leaf."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.rows: list[Live] = []
        self.moves: list[Move] = []
        self._numbers = count()

    def plant(self, rows: int, branches: int) -> None:
        """Begin a tree for each ``branches`` rows."""
        roots = [Live(next(self._numbers), None) for _ in range(rows // branches)]
        self.set_rows([root for root in roots for _ in range(branches)])

    def adopt(self, tokens: int) -> Live:
        """Begin a tree whose root is there already."""
        return Live(next(self._numbers), None, length=tokens, run=self.pages.adopt(tokens))

    def set_rows(self, leaves: Sequence[Live]) -> None:
        """Let rows go on in these segments; a segment that only the former rows held is pruned."""
        for leaf in leaves:
            leaf.holders += 1
        former, self.rows = self.rows, list(leaves)
        self.drop(former)

    def drop(self, held: Iterable[Live]) -> None:
        """Take one holder from each segment, free those without any, and join segments that need not be apart."""
        loose: dict[Live, None] = {}
        for leaf in held:
            leaf.holders -= 1
            loose[leaf] = None
        above = {self._prune(leaf): None for leaf in loose}
        for segment in above:
            if segment is not None:
                self._join(segment)

    def _prune(self, segment: Live | None) -> Live | None:
        """Free a segment and those above it as far as nothing holds them; returns the first that stays."""
        while segment is not None and segment.holders == 0 and not segment.children:
            if segment.run is not None:
                self.pages.give(segment.run)
                segment.run = None
            above, segment.holders = segment.parent, -1  # gone: a branch from it is an error
            if above is not None:
                above.children.remove(segment)
            segment = above
        return segment

    def _join(self, segment: Live) -> None:
        """Let the only child of a segment that nothing else holds take its tokens."""
        while segment.holders == 0 and len(segment.children) == 1:
            child = segment.children[0]
            if not self._put_together(segment, child):
                return
            child.start, child.length, child.parent = segment.start, segment.length + child.length, segment.parent
            segment.holders = -1
            if segment.parent is None:
                return
            segment.parent.children[segment.parent.children.index(segment)] = child
            segment = segment.parent

    def _put_together(self, first: Live, second: Live) -> bool:
        if first.run is None or second.run is None:
            second.run = second.run or first.run
            return True
        total = first.length + second.length
        if total > first.run.capacity and first.length > MOVABLE:
            return False
        if total > first.run.capacity:
            try:
                (target,) = self.pages.take(_roomier(total))
            except OutOfPages:
                return False
            self._move(first.run, target, first.length)
            self.pages.give(first.run)
            first.run = target
        self._move(second.run, first.run, second.length, first.length)
        self.pages.give(second.run)
        second.run = first.run
        return True

    def _move(self, source: PageRun, target: PageRun, tokens: int, at: int = 0, begin: int = 0) -> None:
        """Copy so many tokens from the one that is ``begin`` to ``at``."""
        if tokens:
            begin += source.start
            self.moves.append(Move(source.extent, begin, target.extent, target.start + at, tokens))

    def cut(self, leaf: Live, tokens: int) -> Live:
        """Return the segment that ends after the first ``tokens`` tokens of a path; a longer one is split there."""
        while leaf.parent is not None and tokens <= leaf.start:
            leaf = leaf.parent
        return leaf if tokens == leaf.end else self._split(leaf, tokens - leaf.start)

    def _split(self, segment: Live, tokens: int) -> Live:
        """Let a new segment take the first tokens of a segment, and its pages; what is left of it moves."""
        first = Live(next(self._numbers), segment.parent, segment.start, tokens, segment.run)
        left = segment.length - tokens
        (target,) = self.pages.take(left)
        if segment.run is not None:
            self._move(segment.run, target, left, begin=tokens)
        if segment.parent is not None:
            siblings = segment.parent.children
            siblings[siblings.index(segment)] = first
        first.children.append(segment)
        segment.parent, segment.start, segment.length, segment.run = first, first.end, left, target
        return first

    def cut_rows(self, ends: Sequence[int]) -> None:
        """Let every row go on after so many of its tokens; what nothing else holds behind them is freed."""
        below = Counter(zip(self.rows, ends, strict=True))
        for (leaf, end), rows in below.items():
            if leaf.start < end < leaf.end and leaf.holders == rows and not leaf.children:
                leaf.length = end - leaf.start
        self.set_rows([self.cut(leaf, end) for leaf, end in zip(self.rows, ends, strict=True)])

    def extend(self, new: Sequence[int], *, shared: bool) -> None:
        """Make room for so many new tokens at the end of every row, and count them.

        ``shared``: rows in one leaf have the same tokens, and stay together; ``new`` is then the same for them.

        Raises:
            OutOfPages: There are not enough; the cache is of no use any more.
        """
        if shared:
            self._go_on_together()
        for index, leaf in enumerate([] if shared else list(self.rows)):
            if leaf.holders > 1 or leaf.children:
                self._go_on(leaf, [index])
        wants = {leaf: more for leaf, more in zip(self.rows, new, strict=True) if more}
        for leaf, more in self._make_room(wants).items():
            leaf.length += more

    def _go_on_together(self) -> None:
        """Let rows in one leaf go on in a new one if somebody else holds it, too."""
        for leaf in dict.fromkeys(self.rows):
            if leaf.children or leaf.holders > self.rows.count(leaf):
                self._go_on_from(leaf)

    def _go_on(self, leaf: Live, rows: Iterable[int]) -> Live:
        child = Live(next(self._numbers), leaf, start=leaf.end)
        leaf.children.append(child)
        for row in rows:
            self.rows[row] = child
            leaf.holders -= 1
            child.holders += 1
        return child

    def _go_on_from(self, leaf: Live) -> Live:
        return self._go_on(leaf, [row for row, each in enumerate(self.rows) if each is leaf])

    def _make_room(self, wants: dict[Live, int]) -> dict[Live, int]:
        """Give every segment room for more tokens; those that go on in another one are replaced by that."""
        crowded = [leaf for leaf, more in wants.items() if leaf.run is None or leaf.length + more > leaf.run.capacity]
        if len(crowded) == 1 and self._extend_run(crowded[0], wants[crowded[0]]):
            return wants
        fresh: dict[int, list[Live]] = defaultdict(list)
        for leaf in crowded:
            if leaf.run is not None and leaf.length > MOVABLE:
                more = wants.pop(leaf)
                leaf = self._go_on_from(leaf)
                wants[leaf] = more
            fresh[_pages_for(leaf, wants[leaf], self.pages.size)].append(leaf)
        for capacity, leaves in fresh.items():
            # Side by side, so that segments that grow together can be read together.
            for leaf, run in zip(leaves, self.pages.take(capacity, len(leaves)), strict=True):
                self._move_into(leaf, run)
        return wants

    def _extend_run(self, leaf: Live, more: int) -> bool:
        if leaf.run is None:
            return False
        longer = self.pages.extend(leaf.run, leaf.length + more)
        leaf.run = longer or leaf.run
        return longer is not None

    def _move_into(self, leaf: Live, run: PageRun) -> None:
        if leaf.run is not None:
            self._move(leaf.run, run, leaf.length)
            self.pages.give(leaf.run)
        leaf.run = run

    def take_moves(self) -> list[Move]:
        """Return the copies that every layer makes before it stores new tokens, in this order."""
        moves, self.moves = self.moves, []
        return moves


def _roomier(tokens: int) -> int:
    """Return room for tokens that may grow: copying then costs a constant for each token."""
    return tokens + tokens // _SPARE


def _pages_for(leaf: Live, more: int, page: int) -> int:
    """Return room for more tokens in whole pages; a new segment has just what it needs."""
    tokens = max(leaf.length + more, _roomier(leaf.length))
    return -(-tokens // page) * page
