"""A plan as a page of its own: the picture in it, and the tables; nothing is loaded from elsewhere."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from prefold.plan.advice import Advice
from prefold.plan.page import tables
from prefold.plan.page.plots import picture

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #d0d7de; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def write_plot(advice: Advice, file: Path) -> None:
    """Write the picture of a plan, ``.svg`` or ``.png``, or an ``.html`` page with the picture and the tables."""
    kind = file.suffix.lower().removeprefix(".")
    if kind == "html":
        file.write_text(page(advice), encoding="utf-8")
    else:
        file.write_bytes(picture(advice, kind))


def page(advice: Advice) -> str:
    """Return the page."""
    return "\n".join(_parts(advice)) + "\n"


def _parts(advice: Advice) -> Iterator[str]:
    case = advice.chosen.case
    title = escape(f"{case.shape.name} on {case.mesh.chips} {case.chip.name}")
    yield f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in tables.about(advice))
    if served := tables.serving_table(advice):
        yield from _section("Serving", served)
    yield from _section("Layouts", tables.layouts_table(advice))
    yield from (f"<p>{escape(line)}</p>" for line in _remarks(advice))
    yield from _section("Source and folded, in the chosen layout", tables.source_and_folded(advice))
    yield f"<p>{escape(tables.table_line(advice))}</p>"
    yield from _section("What else would help", tables.levers_table(advice))
    yield f"<p><strong>{escape(advice.verdict)}</strong></p>"
    yield "<h2>Other batches and chips</h2>"
    svg = picture(advice).decode()
    yield svg[svg.index("<svg") :]
    yield _table(tables.points_table(advice))
    yield "</body></html>"


def _remarks(advice: Advice) -> list[str]:
    return [line for line in (tables.choice_line(advice), *tables.copies_lines(advice), *advice.plan.refused) if line]


def _section(title: str, cells: tables.Cells) -> Iterator[str]:
    yield f"<h2>{title}</h2>"
    yield _table(cells)


def _table(cells: tables.Cells) -> str:
    head, *rows = cells
    lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _row(cells: Iterable[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
