"""The output of a plan: tables, plots and pages."""

from prefold.plan.page import tables
from prefold.plan.page.page import write_plot
from prefold.plan.page.plots import KINDS

__all__ = ["KINDS", "tables", "write_plot"]
