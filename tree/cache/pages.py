"""Which pages of the pool hold which segment: runs of consecutive pages, so that a segment is one view."""

from dataclasses import dataclass

from prefold.tree.errors import OutOfPages

# Without a limit, the pool grows by what is asked for and at least this part of what it has.
_GROWTH = 16


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive slots for tokens, ``[start, start + capacity)``, in one extent of the pool."""

    extent: int
    start: int
    capacity: int

    @property
    def stop(self) -> int:
        """The slot behind the last."""
        return self.start + self.capacity


class Extent:
    """A part of the pool that is one tensor in every layer: its size in pages, and what of it is free."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.free: list[tuple[int, int]] = [(0, pages)]

    def take(self, pages: int) -> int | None:
        """Take the first free run of so many pages and return where it starts; None if there is none."""
        for index, (start, size) in enumerate(self.free):
            if size >= pages:
                self.free[index : index + 1] = [(start + pages, size - pages)] if size > pages else []
                return start
        return None

    def take_at(self, start: int, pages: int) -> bool:
        """Take so many pages from ``start`` on, if they are free."""
        for index, (first, size) in enumerate(self.free):
            if first == start and size >= pages:
                self.free[index : index + 1] = [(start + pages, size - pages)] if size > pages else []
                return True
        return False

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

    Args:
        size: Tokens for each page.
        limit: Pages that there are; None for as many as are needed.
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

    def take(self, tokens: int, copies: int = 1) -> list[Run]:
        """Take runs for as many tokens each; several lie side by side where that is possible.

        Raises:
            OutOfPages: There are not as many free pages in one piece.
        """
        pages = max(1, -(-tokens // self.size))
        try:
            extent, start = self._take(pages * copies)
        except OutOfPages:
            if copies == 1:
                raise
            return self._take_singly(pages, copies)
        return [self._run(extent, start + index * pages, pages) for index in range(copies)]

    def _take_singly(self, pages: int, copies: int) -> list[Run]:
        taken: list[Run] = []
        try:
            for _ in range(copies):
                taken.append(self._run(*self._take(pages), pages))
        except OutOfPages:
            for run in taken:
                self.give(run)
            raise
        return taken

    def _run(self, extent: int, start: int, pages: int) -> Run:
        return Run(extent, start * self.size, pages * self.size)

    def _take(self, pages: int) -> tuple[int, int]:
        for name, extent in self.extents.items():
            start = extent.take(pages)
            if start is not None:
                return name, start
        if self.limit is not None and self.extents:
            raise OutOfPages(f"{pages} more pages in one piece: {self.held} of {self.limit} are taken (max_pages)")
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

    def extend(self, run: Run, tokens: int) -> Run | None:
        """Return the run with room for as many tokens, if the pages behind it are free; else None."""
        more = -(-(tokens - run.capacity) // self.size)
        if not self.extents[run.extent].take_at(run.stop // self.size, more):
            return None
        return Run(run.extent, run.start, run.capacity + more * self.size)

    def give(self, run: Run) -> None:
        """Take a run back; an extent that holds nothing any more is gone, unless the pool has a limit."""
        extent = self.extents[run.extent]
        extent.give(run.start // self.size, run.capacity // self.size)
        if extent.is_empty and self.limit is None:
            del self.extents[run.extent]
