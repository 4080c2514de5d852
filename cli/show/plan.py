"""The tables of a plan."""

from typing import Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from prefold.cli.show.show import out, say
from prefold.plan import Advice
from prefold.plan.page import tables

_NOTE = "note"
# Words are read from the left, figures from the right.
_WORDS = ("FFN", "attention", "bound,\nideal", "fits", _NOTE)


def show_advice(advice: Advice) -> None:
    """Print a plan from top to bottom: serving, layouts, source and folded, levers, verdict, sweep, commands."""
    for line in tables.about(advice):
        say(line)
    if served := tables.serving_table(advice):
        _show("serving", served)
    if line := tables.serving_line(advice):
        say(line, "yellow")
    _show("layouts", tables.layouts_table(advice))
    for line in filter(None, [tables.choice_line(advice), *tables.copies_lines(advice), *advice.plan.refused]):
        say(line, "yellow")
    _show("where the time of the chosen layout goes", tables.source_and_folded(advice))
    say(tables.table_line(advice))
    if advice.folded.chosen.case.layout != advice.chosen.case.layout:
        say(f"folded, {advice.folded.chosen.case.layout} would be chosen", "yellow")
    _show("what would help, each by itself", tables.levers_table(advice))
    say(advice.verdict, "bold")
    _show_sweep(advice)
    _show_commands(advice)


def _show(title: str, cells: tables.Cells) -> None:
    say(f"\n{title}", "bold")
    head, *rows = cells
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(head):
        # A figure that is cut off is none: rather, a narrow terminal wraps the table's lines.
        widest = max(cell_len(line) for row in cells for line in row[index].splitlines() or [""])
        justify: Literal["left", "right"] = "left" if index == 0 or heading in _WORDS else "right"
        table.add_column(heading, justify=justify, min_width=None if heading == _NOTE else widest)
    for row in rows:
        table.add_row(*map(Text, row), style="bold" if row[-1].endswith("chosen") else "")
    out.print(table)


def _show_sweep(advice: Advice) -> None:
    if any(each.memory.fits for each in advice.sweep):
        title = f"other batches and chips: not beaten in time and MFU ({advice.chosen.basis})"
        _show(title, tables.points_table(advice))
    if unfit := tables.unfit_line(advice):
        say(unfit, "yellow")


def _show_commands(advice: Advice) -> None:
    say("\nthe same in an engine" if advice.commands else "\nno engine has this layout", "bold")
    for line in advice.commands.values():
        out.print(Text(line), soft_wrap=True)
