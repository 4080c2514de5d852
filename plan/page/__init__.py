"""What a plan prints: tables, plots and pages."""

from prefold.plan.page.page import write_plot
from prefold.plan.page.plots import KINDS
from prefold.plan.page.tables import (
    Cells,
    about,
    choice_line,
    layouts_table,
    levers_table,
    points_table,
    source_and_folded,
    table_line,
    unfit_line,
)

__all__ = [
    "KINDS",
    "Cells",
    "about",
    "choice_line",
    "layouts_table",
    "levers_table",
    "points_table",
    "source_and_folded",
    "table_line",
    "unfit_line",
    "write_plot",
]
