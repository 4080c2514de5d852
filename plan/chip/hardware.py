"""Chips, and how they are joined."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: what it is called.
        peak: operations per second, by the type of the numbers: ``bf16``, ``fp8``, ``int8``; ``bf16`` always.
        memory_bytes: that it holds.
        memory_bandwidth: bytes per second.
        link_bandwidth: bytes per second that it can send to others; 0 where it stands alone.
        host_bandwidth: bytes per second from its host's memory to it; its own memory's where these are the same.
        disk_bandwidth: bytes per second of random reads of whole rows from a disk.
        axes: the sizes of a mesh that its links are made for, by the number of chips.
        source: where the figures come from, by their names.
    """

    name: str
    peak: dict[str, float]
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    host_bandwidth: float
    disk_bandwidth: float
    axes: dict[int, tuple[int, int, int]]
    source: dict[str, str]

    @property
    def estimates(self) -> list[str]:
        """Figures that the vendor does not publish, by their names in ``source``."""
        return [figure for figure, text in self.source.items() if text.startswith("estimate")]

    @property
    def shares_memory(self) -> bool:
        """Whether its memory is its host's."""
        return self.host_bandwidth >= self.memory_bandwidth

    def peak_of(self, kind: str) -> float:
        """Operations per second for numbers of a kind; for those that the chip cannot multiply, those of bf16."""
        return self.peak.get(kind, self.peak["bf16"])


@dataclass(frozen=True)
class Mesh:
    """Chips along three axes (Pope et al. 2022, section 3.1)."""

    x: int
    y: int
    z: int

    @property
    def chips(self) -> int:
        """How many there are."""
        return prod((self.x, self.y, self.z))

    def along(self, axes: str) -> tuple[int, ...]:
        """Sizes of those of the named axes that have more than one chip."""
        return tuple(size for size in (getattr(self, axis) for axis in axes) if size > 1)

    def __str__(self) -> str:
        return f"{self.x}x{self.y}x{self.z}"
