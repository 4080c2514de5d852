"""The catalogues in a terminal: chips and shapes, all of them or one with its sources."""

from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from prefold.cli.show.show import out, say
from prefold.common.units import spell_bytes, spell_weights
from prefold.plan import Chip, Shape, calibrations_of, row_width

_GIGA, _TERA = 1e9, 1e12
_BANDWIDTHS = ("memory_bandwidth", "link_bandwidth", "network_bandwidth", "host_bandwidth", "disk_bandwidth")
_HEADINGS = (
    *("peak, TFLOP/s", "memory", "at GB/s", "links, GB/s", "network, GB/s", "host, GB/s", "disk, GB/s"),
    *("chips in a node", "in a mesh"),
)
_UNITS = {"peak": " TFLOP/s", "node": " chips", "axes": " chips", **dict.fromkeys(_BANDWIDTHS, " GB/s")}


def chip_json(chip: Chip) -> dict[str, Any]:
    """Return a chip's figures by their names: bytes, bytes per second, operations per second."""
    sources = [each.source for each in calibrations_of(chip)]
    axes = {str(count): list(axes) for count, axes in chip.axes.items()}
    return asdict(chip) | {"axes": axes, "estimates": chip.estimates, "calibrations": sources}


def show_chips(chips: list[Chip]) -> None:
    """Print all chips; `~` marks estimates."""
    table = Table("name", box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    table.add_column("times")
    for chip in chips:
        basis = "ideal and calibrated" if calibrations_of(chip) else "ideal"
        table.add_row(chip.name, *map(Text, _figures(chip).values()), basis)
    out.print(table)
    say(
        "~ an estimate, since the vendor does not publish it; `prefold hardware NAME` says where each figure comes from"
    )


def show_chip(chip: Chip) -> None:
    """Print one chip, each figure with its source."""
    say(chip.name, "bold")
    table = Table("figure", "", "source", box=None, pad_edge=False)
    for field, text in _figures(chip).items():
        if text:
            table.add_row(field, Text(f"{text}{_UNITS.get(field, '')}"), Text(chip.source.get(field, "")))
    if chip.generation:
        table.add_row("generation", Text(chip.generation))
    out.print(table)
    for each in calibrations_of(chip):
        say(f"calibrated times: {each.source}")
    if not calibrations_of(chip):
        say("ideal times only: nobody has measured it")


def _figures(chip: Chip) -> dict[str, str]:
    """Return figures as texts by their names in ``chip.source``."""
    figures = {
        "peak": ", ".join(f"{kind} {_number(value / _TERA)}" for kind, value in chip.peak.items()),
        "memory": spell_bytes(chip.memory_bytes),
        **{field: _number(getattr(chip, field) / _GIGA) for field in _BANDWIDTHS},
        "node": f"{chip.node:,}",
    }
    marked = {field: f"~{text}" if field in chip.estimates else text for field, text in figures.items()}
    return marked | {"axes": ", ".join(map(str, chip.axes))}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def shape_json(shape: Shape) -> dict[str, Any]:
    """Return a shape's figures by their names, and their sums; weights and values."""
    told = {"weights": shape.weights, "active_weights": shape.active_weights, "row_width": row_width(shape)}
    return asdict(shape) | told


def show_shapes(shapes: list[Shape]) -> None:
    """Print all shapes."""
    table = Table("name", box=None, pad_edge=False)
    for heading in ("weights", "active", "layers", "width", "FFN", "heads", "of keys", "vocabulary"):
        table.add_column(heading, justify="right")
    table.add_column("block")
    for shape in shapes:
        sizes = (shape.num_layers, shape.hidden_size, shape.intermediate_size, shape.num_attention_heads)
        more = (shape.num_key_value_heads, shape.vocab_size)
        weights = (spell_weights(shape.weights), spell_weights(shape.active_weights))
        table.add_row(shape.name, *weights, *(f"{size:,}" for size in (*sizes, *more)), _block(shape))
    out.print(table)
    say("`prefold plan` takes these names, a folder, a config.json or a hub id; `prefold shapes NAME` has the source")


def show_shape(shape: Shape) -> None:
    """Print one shape with all its sizes, and its source."""
    say(shape.name, "bold")
    table = Table("size", "", box=None, pad_edge=False)
    for name, value in asdict(shape).items():
        if name not in ("name", "source") and value is not None:
            table.add_row(name, Text(_spelt(value)))
    table.add_row("weights", spell_weights(shape.weights))
    table.add_row("active weights", spell_weights(shape.active_weights))
    table.add_row("values of a folded row", f"{row_width(shape):,}")
    out.print(table)
    say(f"source: {shape.source}")


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_spelt(each)}" for name, each in value.items() if each is not None)
    return f"{value:,.0f}"


def _block(shape: Shape) -> str:
    parts = ["parallel" if shape.parallel else "serial", "gated" if shape.gated else "not gated"]
    experts = shape.experts
    parts += [f"{experts.num_experts} experts, {experts.num_experts_per_tok} active"] if experts else []
    parts += ["latent attention"] if shape.latent else []
    parts += ["cross-attention"] if shape.cross else []
    parts += [f"{shape.state_layers} layers with a state"] if shape.state else []
    return ", ".join(parts)
