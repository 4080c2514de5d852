"""Chips, and how they are joined."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        peak: operations per second by type of number: ``bf16`` always, ``fp8``, ``int8``.
        memory_bandwidth: bytes per second, as all bandwidths.
        link_bandwidth: 0 for a chip that stands alone.
        host_bandwidth: from the host's memory; its own memory's where these are the same.
        disk_bandwidth: of random reads of whole rows.
        axes: the sizes of a mesh that its links are made for, by the number of chips.
        source: of each figure.
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
        """Their number."""
        return prod((self.x, self.y, self.z))

    def along(self, axes: str) -> tuple[int, ...]:
        """Sizes of those of the named axes that have more than one chip."""
        return tuple(size for size in (getattr(self, axis) for axis in axes) if size > 1)

    def __str__(self) -> str:
        return f"{self.x}x{self.y}x{self.z}"
