"""What can be wrong with a chip in a TOML file."""

from collections.abc import Iterator
from typing import Any

from prefold.common.errors import UsageError
from prefold.common.units import Kind, parse_quantity
from prefold.plan.chip.meshes import parse_mesh

FIGURES: dict[str, Kind] = {
    "memory": "bytes",
    "memory_bandwidth": "bytes per second",
    "link_bandwidth": "bytes per second",
    "host_bandwidth": "bytes per second",
    "disk_bandwidth": "bytes per second",
}
NEEDED = ("peak", *FIGURES)
SOURCED = (*NEEDED, "axes")
_KINDS = ("bf16", "fp8", "int8")
_MAY_BE_NOTHING = ("link_bandwidth",)


def faults(table: Any) -> Iterator[str]:
    """Yield every fault of a chip's figures, one line each."""
    if not isinstance(table, dict):
        yield "not a table of a chip's figures"
        return
    missing = [field for field in NEEDED if field not in table]
    if isinstance(table.get("peak"), dict) and "bf16" not in table["peak"]:
        missing.append("peak.bf16")
    if missing:
        yield f"missing {', '.join(missing)}"
    yield from (f"{field}: no chip has such a field" for field in table if field not in (*SOURCED, "source"))
    for field, kind in FIGURES.items():
        yield from _quantity_faults(field, table[field], kind) if field in table else ()
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
    yield from (f"source.{field}: no chip has such a field" for field in source if field not in SOURCED)
