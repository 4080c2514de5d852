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

from prefold.common.units import spell_bytes

if TYPE_CHECKING:
    from prefold.convert import FoldedSide, Inspection, Savings, Written
    from prefold.verify import Verification

# A pipe has no width; tables must not be cut to fit one.
_WIDE = None if sys.stdout.isatty() else 160

out = Console(width=_WIDE, soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


def show_json(figures: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def printable(text: str) -> str:
    """Return a text whose characters a terminal shows and does not obey: names come from strangers' files."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def say(line: str, style: str = "") -> None:
    """Print a line of the result."""
    out.print(Text(printable(line), style=style))


def note(line: str) -> None:
    """Print a line about the work itself."""
    err.print(Text(printable(line), style="dim"))


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
    return spell_bytes(size, ("GB", "MB"))


def show_inspection(inspection: "Inspection") -> None:
    """Print what folds, what it costs and what it saves."""
    if inspection.savings is None:
        say(f"{inspection.model} does not fold:", "bold red")
        for reason in inspection.reasons:
            say(f"  {reason}")
        return
    savings = inspection.savings
    for remark in _remarks(savings):
        say(remark, "yellow")
    for side in savings.sides:
        if side.side:
            say(side.side, "bold")
        out.print(_modules_table(side))
        say(f"table       {side.rows:,} rows x {side.row_width:,} values{_look_ups(side)}")
    for reason in savings.unfolded:
        say(f"does not fold: {reason}", "yellow")
    say(f"stored      {_gigabytes(savings.table_bytes)} ({_layouts(savings)})")
    say(f"in memory   {_gigabytes(savings.tenth_bytes)} with --placement disk, if a tenth of the rows is in use")
    if len(savings.cuts) > len(savings.sides):
        out.print(_cuts_table(savings))
    out.print(_explained_table(savings))
    growth = savings.checkpoint_after - savings.checkpoint_before
    before, after = _gigabytes(savings.checkpoint_before), _gigabytes(savings.checkpoint_after)
    say(f"checkpoint  {before} before, {after} after ({growth / savings.checkpoint_before:+.1%})")
    out.print(_first_layer_table(savings))
    out.print(_model_table(savings))
    limit = savings.break_even_batch
    say("break-even  none: every batch gains" if limit is None else f"break-even  up to a batch of {limit:,} tokens")
    say(inspection.verdict, "bold")


def _remarks(savings: "Savings") -> list[str]:
    """Tell what the figures are not."""
    smaller = f"rows are stored smaller: one counts as the {savings.dtype} values that are as long".replace(
        "torch.", ""
    )
    told = [savings.note, smaller if savings.table_dtype else None]
    return [remark for remark in told if remark]


def _look_ups(side: "FoldedSide") -> str:
    """Tell of the tables beside a side's own."""
    return "".join(f", {values:,} values beside {module}" for module, values in side.look_ups.items())


def _layouts(savings: "Savings") -> str:
    if savings.table_dtype:
        native = sum(side.rows * side.row_width for side in savings.sides) * savings.dtype.itemsize
        return f"columns as {savings.table_dtype}: not equal, within a measured error; equal rows {_gigabytes(native)}"
    if not savings.exact:
        return "a sum of look-ups: as accurate as the source, not equal to the bit"
    if not savings.merged_width:
        return "no FFN to merge into the residual"
    rows, itemsize = savings.sides[0].rows, savings.dtype.itemsize
    sizes = [_gigabytes(rows * width * itemsize) for width in savings.layouts.values()]
    return f"exact {sizes[0]}, with --merge-residual {sizes[1]}"


def _modules_table(side: "FoldedSide") -> Table:
    table = _table("module", "becomes", "values", "weights gone")
    parts = [(side.residual, "residual"), *((column, "column") for column in side.columns)]
    parts += [(module, "dropped") for module in side.dropped]
    for module, becomes in parts:
        width = f"{module.width:,}" if module.width else ""
        table.add_row(module.module, becomes, width, f"{module.weights_eliminated:,}")
    table.columns[1].justify = "left"
    return table


def _cuts_table(savings: "Savings") -> Table:
    table = _table("cut", "side", "reads saved per token, values", "stores", "")
    for cut in savings.cuts:
        chosen = "chosen" if cut.chosen else ""
        table.add_row(cut.name, cut.side, f"{cut.reads_saved:,}", _gigabytes(cut.table_bytes), chosen)
    return table


def _explained_table(savings: "Savings") -> Table:
    table = Table("module of the first layer", "sees", "becomes", box=None, pad_edge=False)
    for module in savings.modules:
        table.add_row(module.module, module.sees, module.becomes)
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _first_layer_table(savings: "Savings") -> Table:
    table = _table("first layer reads, values", "source", "folded", "fewer", "as the paper counts")
    for reads, paper in zip(savings.reads, savings.paper.reads, strict=True):
        before, after = f"{reads.first_layer_before:,.0f}", f"{reads.first_layer_after:,.0f}"
        table.add_row(f"batch {reads.batch:,}", before, after, f"{reads.first_layer_ratio:,.0f}x", f"{paper.ratio:,}x")
    return table


def _model_table(savings: "Savings") -> Table:
    table = _table("whole model reads, values", "source", "folded", "saved")
    for reads in savings.reads:
        before, after = f"{reads.model_before:,.0f}", f"{reads.model_after:,.0f}"
        table.add_row(f"batch {reads.batch:,}", before, after, f"{reads.model_saving:.2%}")
    return table


def show_written(written: "Written") -> None:
    """Print what a conversion wrote, and what it did not have to."""
    shared = f"; {_gigabytes(written.shared_bytes)} shared with the source's files" if written.shared_bytes else ""
    say(f"written     {_gigabytes(written.bytes)} in {written.seconds:,.1f} s{shared}")


def show_verification(verification: "Verification") -> None:
    """Print every check with its figure."""
    table = Table("check", "", "measured", box=None, pad_edge=False)
    for name, outcome in verification.checks.items():
        style, word = ("green", "passed") if outcome.passed else ("bold red", "FAILED")
        table.add_row(name, Text(word, style=style), Text(printable("\n".join([outcome.summary, *outcome.problems]))))
    out.print(table)
