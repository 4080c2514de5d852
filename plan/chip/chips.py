"""Chips by name, and chips from a file of the user's; both are TOML, as ``hardware.toml`` explains it."""

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from prefold.common.errors import UnknownName, UsageError
from prefold.common.units import parse_quantity
from prefold.plan.chip.chip_faults import FIGURES, NEEDED, SOURCED, faults
from prefold.plan.chip.hardware import Chip
from prefold.plan.chip.meshes import parse_mesh


@cache
def catalogue() -> dict[str, Chip]:
    """Return the chips that prefold knows, in their order."""
    text = files("prefold.plan.chip").joinpath("hardware.toml").read_text(encoding="utf-8")
    return parse_chips(text, "hardware.toml")


def find_chip(name: str) -> Chip:
    """Return the chip of that name, or the one in a file whose name ends in ``.toml``.

    Raises:
        UnknownName: no chip is called so; with the nearest names.
        UsageError: the file cannot be read, has no chip or several, or is wrong; a line for each fault.
    """
    if name.lower().endswith(".toml"):
        return _only(read_chips(Path(name)), name)
    known = catalogue()
    if name.lower() not in known:
        raise UnknownName("hardware", name, list(known))
    return known[name.lower()]


def read_chips(path: Path) -> dict[str, Chip]:
    """Return the chips of a file; ``UsageError`` with a line for each fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file") from error
    return parse_chips(text, str(path))


def parse_chips(text: str, origin: str) -> dict[str, Chip]:
    """Return the chips of a TOML text by their names; ``origin`` is its name in faults.

    Raises:
        UsageError: not TOML, or a figure is missing, unknown or without its unit; a line for each.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    wrong = [f"{origin}: {name}: {fault}" for name, table in tables.items() for fault in faults(table)]
    if wrong:
        raise UsageError("\n".join(wrong))
    return {name: _chip(name, table, origin) for name, table in tables.items()}


def _only(chips: dict[str, Chip], origin: str) -> Chip:
    if len(chips) != 1:
        raise UsageError(f"{origin}: {', '.join(chips) or 'no chip'}: there must be one chip in the file")
    return next(iter(chips.values()))


def _chip(name: str, table: dict[str, Any], origin: str) -> Chip:
    meshes = [parse_mesh(text) for text in table.get("axes", [])]
    figures = {field: parse_quantity(table[field], kind) for field, kind in FIGURES.items()}
    sourced = SOURCED if meshes else NEEDED
    return Chip(
        name=name,
        peak={kind: parse_quantity(value, "operations per second") for kind, value in table["peak"].items()},
        memory_bytes=figures.pop("memory"),
        axes={mesh.chips: (mesh.x, mesh.y, mesh.z) for mesh in meshes},
        source={field: table.get("source", {}).get(field, origin) for field in sourced},
        **figures,
    )
