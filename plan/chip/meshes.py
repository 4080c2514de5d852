"""Meshes: as they are written, and those of so many chips."""

import re
from itertools import product
from math import isqrt

from prefold.common.errors import UsageError
from prefold.plan.chip.hardware import Chip, Mesh
from prefold.plan.errors import Infeasible

_MESH = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})")


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
        UsageError: less than one chip.
        Infeasible: the mesh has not so many chips, or there are several of chips that nothing joins.
    """
    if chips is not None and chips < 1:
        raise UsageError(f"{chips} chips: at least one")
    if mesh is None:
        count = chips or 1
        mesh = Mesh(*chip.axes[count]) if count in chip.axes else cubic_mesh(count)
    if chips is not None and mesh.chips != chips:
        raise Infeasible(f"mesh {mesh} has {mesh.chips} chips, not {chips}")
    if mesh.chips > 1 and not chip.link_bandwidth:
        raise Infeasible(f"{chip.name}: nothing joins several of them; there can be one")
    return mesh


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, isqrt(number) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})
