"""Chips, and how they are joined."""

import re
from dataclasses import dataclass
from itertools import product
from math import isqrt, prod

from prefold.common.errors import UsageError
from prefold.plan.errors import Infeasible

_MESH = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})")


_MOST = 1_000_000


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        peak: operations per second by type of number: ``bf16`` always, ``fp8``, ``fp4``, ``int8``.
        memory_bandwidth: bytes per second, as all bandwidths.
        link_bandwidth: 0 for a chip that stands alone.
        host_bandwidth: from the host's memory; its own memory's where these are the same.
        disk_bandwidth: of random reads of whole rows.
        axes: the sizes of a mesh that its links are made for, by the number of chips.
        source: of each figure.
        network_bandwidth: between nodes; 0 where no network is made for it.
        node: chips that its links join.
        generation: of its design, as ``hopper``; empty where it is not known.
        note: what holds of all figures, and is told with every plan; empty if nothing does.
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
    network_bandwidth: float = 0
    node: int = 8
    generation: str = ""
    note: str = ""

    @property
    def estimates(self) -> list[str]:
        """Figures that the vendor does not publish, by their names in ``source``."""
        return [figure for figure, text in self.source.items() if text.startswith("estimate")]

    @property
    def shares_memory(self) -> bool:
        """Whether its memory is its host's."""
        return self.host_bandwidth >= self.memory_bandwidth

    def joined_at(self, chips: int) -> float:
        """Bytes per second that each of so many chips can send to the others.

        Beyond a node all of its chips share its network, over which each sends its share of what it sends at all; 0
        without a network.
        """
        if chips <= self.node:
            return self.link_bandwidth
        network = self.node * self.network_bandwidth
        return min(self.link_bandwidth, network) if self.link_bandwidth else network

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


def parse_mesh(text: str) -> Mesh:
    """Return the mesh that is written as ``4x4x4``; ``UsageError`` where it is not written so."""
    found = _MESH.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"{text}: not a mesh, which is written as 4x4x4: chips along x, y and z")
    return Mesh(*map(int, found.groups()))


def cubic_mesh(chips: int) -> Mesh:
    """Return the mesh of so many chips whose axes are as equal as they can be, the shortest first."""
    pairs = product(_divisors(chips), repeat=2)
    axes = (sorted((x, y, chips // (x * y))) for x, y in pairs if chips % (x * y) == 0)
    return Mesh(*min(axes, key=lambda sides: (sum(sides), sides)))


def mesh_of(chip: Chip, chips: int | None = None, mesh: Mesh | None = None) -> Mesh:
    """Return the mesh that was asked for, or the one that so many chips are joined in; one chip for neither.

    Raises:
        UsageError: less than one chip, or more than a million.
        Infeasible: the mesh has not so many chips, or there are several of chips that nothing joins.
    """
    for asked in (chips, mesh.chips if mesh else None):
        _require_count(asked)
    if mesh is None:
        count = chips or 1
        mesh = Mesh(*chip.axes[count]) if count in chip.axes else cubic_mesh(count)
    if chips is not None and mesh.chips != chips:
        raise Infeasible(f"mesh {mesh} has {mesh.chips} chips, not {chips}")
    if mesh.chips > 1 and not chip.joined_at(mesh.chips):
        most = chip.node if chip.link_bandwidth else 1
        raise Infeasible(f"{chip.name}: nothing joins {'several' if most == 1 else f'more than {most}'} of them")
    return mesh


def _require_count(chips: int | None) -> None:
    if chips is not None and chips < 1:
        raise UsageError(f"{chips} chips: at least one")
    if chips is not None and chips > _MOST:
        raise UsageError(f"chips: at most {_MOST:,}")


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})
