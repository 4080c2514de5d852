"""Chips by name, and chips from a file of the user's; both are TOML, as ``hardware.toml`` explains it."""

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from prefold.common.errors import UnknownName, UsageError
from prefold.common.units import Kind, parse_quantity
from prefold.plan.chip.hardware import Chip, Mesh, parse_mesh

_FIGURES: dict[str, Kind] = {
    "memory": "bytes",
    "memory_bandwidth": "bytes per second",
    "link_bandwidth": "bytes per second",
    "host_bandwidth": "bytes per second",
    "disk_bandwidth": "bytes per second",
}
_NEEDED = ("peak", *_FIGURES)
_NETWORK = "network_bandwidth"
_SOURCED = (*_NEEDED, _NETWORK, "node", "axes")
_KINDS = ("bf16", "fp8", "fp4", "int8")
_MAY_BE_NOTHING = ("link_bandwidth", _NETWORK)
NVIDIA = ("turing", "ampere", "ada", "hopper", "blackwell")  # the oldest first
GENERATIONS = ("", *NVIDIA, "cdna3", "tpu", "apple", "zen4", "snapdragon")
_NODE = 8  # chips that a server joins, where a file leaves it open


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
        chips = read_chips(Path(name))
        if len(chips) != 1:
            raise UsageError(f"{name}: {', '.join(chips) or 'no chip'}: there must be one chip in the file")
        return next(iter(chips.values()))
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
    """Return the chips of a TOML text; ``UsageError`` with a line for each fault, which begins with ``origin``."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin}: not TOML: {error}") from error
    wrong = [f"{origin}: {name}: {fault}" for name, table in tables.items() for fault in _faults(table)]
    if wrong:
        raise UsageError("\n".join(wrong))
    return {name: _chip(name, table, origin) for name, table in tables.items()}


def _chip(name: str, table: dict[str, Any], origin: str) -> Chip:
    meshes = [parse_mesh(text) for text in table.get("axes", [])]
    figures = {field: parse_quantity(table[field], kind) for field, kind in _FIGURES.items()}
    figures[_NETWORK] = parse_quantity(table.get(_NETWORK, "0 GB/s"), "bytes per second")
    sourced = [field for field in _SOURCED if table.get(field)]
    return Chip(
        name=name,
        peak={kind: parse_quantity(value, "operations per second") for kind, value in table["peak"].items()},
        memory_bytes=figures.pop("memory"),
        axes={mesh.chips: (mesh.x, mesh.y, mesh.z) for mesh in meshes},
        source={field: table.get("source", {}).get(field, origin) for field in sourced},
        node=table.get("node") or _node(meshes, figures["link_bandwidth"]),
        generation=table.get("generation", ""),
        note="",
        **figures,
    )


def _node(meshes: list[Mesh], link_bandwidth: float) -> int:
    """Return how many chips the links join where the file leaves it open: the largest mesh, a server's, or one."""
    return max((mesh.chips for mesh in meshes), default=_NODE if link_bandwidth else 1)


def _faults(table: Any) -> Iterator[str]:
    """Yield every fault of a chip's figures, one line each."""
    if not isinstance(table, dict):
        yield "not a table of a chip's figures"
        return
    missing = [field for field in _NEEDED if field not in table]
    if isinstance(table.get("peak"), dict) and "bf16" not in table["peak"]:
        missing.append("peak.bf16")
    if missing:
        yield f"missing {', '.join(missing)}"
    yield from (
        f"{field}: no chip has such a field" for field in table if field not in (*_SOURCED, "generation", "source")
    )
    for field, kind in {**_FIGURES, _NETWORK: _FIGURES["link_bandwidth"]}.items():
        yield from _quantity_faults(field, table[field], kind) if field in table else ()
    yield from _design_faults(table)
    yield from _peak_faults(table.get("peak", {}))
    yield from _axes_faults(table.get("axes", []))
    yield from _source_faults(table.get("source", {}))


def _quantity_faults(field: str, value: Any, kind: Kind) -> Iterator[str]:
    try:
        nothing = parse_quantity(value, kind) == 0
    except UsageError as error:
        yield f"{field}: {error}"
        return
    if nothing and field not in _MAY_BE_NOTHING:
        yield f"{field}: it cannot be nothing"


def _design_faults(table: dict[str, Any]) -> Iterator[str]:
    node, generation = table.get("node", _NODE), table.get("generation", "")
    if isinstance(node, bool) or not isinstance(node, int) or node < 1:
        yield f"node: {node!r} is not a number of chips"
    if generation not in GENERATIONS:
        yield f"generation: {generation!r}: no such generation; there are {', '.join(filter(None, GENERATIONS))}"


def _peak_faults(peaks: Any) -> Iterator[str]:
    if not isinstance(peaks, dict):
        yield 'peak: not a table, as { bf16 = "312 TFLOP/s" }'
        return
    for kind, value in peaks.items():
        if kind not in _KINDS:
            yield f"peak.{kind}: no such type of numbers; there are {', '.join(_KINDS)}"
        yield from _quantity_faults(f"peak.{kind}", value, "operations per second")


def _axes_faults(meshes: Any) -> Iterator[str]:
    if not isinstance(meshes, list):
        yield 'axes: not a list of meshes, as ["2x2x2", "4x4x4"]'
        return
    sizes: list[int] = []
    for mesh in meshes:
        try:
            sizes.append(parse_mesh(str(mesh)).chips)
        except UsageError as error:
            yield f"axes: {error}"
    yield from (f"axes: several meshes of {size} chips" for size in sorted(set(sizes)) if sizes.count(size) > 1)


def _source_faults(source: Any) -> Iterator[str]:
    if not isinstance(source, dict) or not all(isinstance(text, str) for text in source.values()):
        yield "source: not a table of texts"
        return
    yield from (f"source.{field}: no chip has such a field" for field in source if field not in _SOURCED)
