"""What people see: tables and lines on stdout, progress on stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from prefold.convert import Inspection
    from prefold.convert.inspection import Worth
    from prefold.verify import Verification

# A pipe has no width; tables must not be cut to fit one.
_WIDE = None if sys.stdout.isatty() else 160

out = Console(width=_WIDE, soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def show_json(figures: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def say(line: str, style: str = "") -> None:
    """Print a line of the result."""
    out.print(Text(line, style=style))


def note(line: str) -> None:
    """Print a line about the work itself."""
    err.print(Text(line, style="dim"))


@contextmanager
def byte_bars() -> Iterator[Progress]:
    """Yield bars with rates and time left, to be started by who has work; nothing where stderr is not a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    try:
        yield progress
    finally:
        progress.stop()


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e7 else f"{size / 1e6:,.2f} MB"


def show_inspection(inspection: "Inspection") -> None:
    """Print what folds, what it costs and what it saves."""
    if inspection.worth is None:
        say(f"{inspection.model} does not fold:", "bold red")
        for reason in inspection.reasons:
            say(f"  {reason}")
        return
    worth = inspection.worth
    if inspection.assumed_parallel:
        say("figures of a hypothetical block whose attention and FFN are parallel", "yellow")
    out.print(_modules_table(worth))
    say(
        f"table       {worth.rows:,} rows x {worth.row_width:,} values, "
        f"{_gigabytes(worth.table_bytes)} ({_layouts(worth)})"
    )
    growth = worth.checkpoint_after - worth.checkpoint_before
    before, after = _gigabytes(worth.checkpoint_before), _gigabytes(worth.checkpoint_after)
    say(f"checkpoint  {before} before, {after} after ({growth / worth.checkpoint_before:+.1%})")
    out.print(_first_layer_table(worth))
    out.print(_model_table(worth))
    limit = worth.break_even_batch
    say("break-even  none: every batch gains" if limit is None else f"break-even  up to a batch of {limit:,} tokens")
    say(inspection.verdict, "bold")


def _layouts(worth: "Worth") -> str:
    if worth.exact_row_width == worth.merged_row_width:
        return "no FFN to merge into the residual"
    sizes = [
        _gigabytes(worth.rows * width * worth.dtype.itemsize)
        for width in (worth.exact_row_width, worth.merged_row_width)
    ]
    return f"exact {sizes[0]}, with --merge-residual {sizes[1]}"


def _modules_table(worth: "Worth") -> Table:
    table = _table("module", "becomes", "values", "weights gone")
    parts = [(worth.residual, "residual"), *((column, "column") for column in worth.columns)]
    parts += [(module, "dropped") for module in worth.dropped]
    for module, becomes in parts:
        width = f"{module.width:,}" if module.width else ""
        table.add_row(module.module, becomes, width, f"{module.weights_eliminated:,}")
    table.columns[1].justify = "left"
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _first_layer_table(worth: "Worth") -> Table:
    table = _table("first layer reads, values", "source", "folded", "fewer", "as the paper counts")
    for reads, paper in zip(worth.reads, worth.paper.reads, strict=True):
        before, after = f"{reads.first_layer_before:,.0f}", f"{reads.first_layer_after:,.0f}"
        table.add_row(f"batch {reads.batch:,}", before, after, f"{reads.first_layer_ratio:,.0f}x", f"{paper.ratio:,}x")
    return table


def _model_table(worth: "Worth") -> Table:
    table = _table("whole model reads, values", "source", "folded", "saved")
    for reads in worth.reads:
        before, after = f"{reads.model_before:,.0f}", f"{reads.model_after:,.0f}"
        table.add_row(f"batch {reads.batch:,}", before, after, f"{reads.model_saving:.2%}")
    return table


def show_verification(verification: "Verification") -> None:
    """Print every check with its figure."""
    table = Table("check", "", "measured", box=None, pad_edge=False)
    for name, outcome in verification.checks.items():
        style, word = ("green", "passed") if outcome.passed else ("bold red", "FAILED")
        table.add_row(name, Text(word, style=style), Text("\n".join([outcome.summary, *outcome.problems])))
    out.print(table)
