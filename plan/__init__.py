"""The analytical model: where the time of inference goes, and which layout to choose (Pope et al. 2022)."""

from prefold.common.errors import UnknownName, UsageError
from prefold.plan.advice import Advice, advise
from prefold.plan.calibration import Factors, Measurement, factors_of, fit
from prefold.plan.case import Case
from prefold.plan.chip.chips import catalogue, find_chip
from prefold.plan.chip.hardware import Chip, Mesh
from prefold.plan.chip.meshes import mesh_of, parse_mesh
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, Plan, mfu, plan_layouts
from prefold.plan.fold import Fold, break_even_batch, row_width, table_for
from prefold.plan.levers import Lever, rank_levers, verdict
from prefold.plan.memory import Memory, context_left, max_context
from prefold.plan.model.config import shape_from_config
from prefold.plan.model.shape import Experts, Latent, Shape
from prefold.plan.model.shapes import find_shape, presets
from prefold.plan.page.page import write_plot
from prefold.plan.sweep import Space, Target, pareto
from prefold.plan.terms import Terms, terms_of
from prefold.plan.workload import Workload

__all__ = [
    "Advice",
    "Case",
    "Chip",
    "Estimate",
    "Experts",
    "Factors",
    "Fold",
    "Infeasible",
    "Latent",
    "Lever",
    "Measurement",
    "Memory",
    "Mesh",
    "Plan",
    "Shape",
    "Space",
    "Target",
    "Terms",
    "UnknownName",
    "UsageError",
    "Workload",
    "advise",
    "break_even_batch",
    "catalogue",
    "context_left",
    "factors_of",
    "find_chip",
    "find_shape",
    "fit",
    "max_context",
    "mesh_of",
    "mfu",
    "pareto",
    "parse_mesh",
    "plan_layouts",
    "presets",
    "rank_levers",
    "row_width",
    "shape_from_config",
    "table_for",
    "terms_of",
    "verdict",
    "write_plot",
]
