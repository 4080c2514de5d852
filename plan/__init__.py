"""The analytical model: where the time of inference goes, and which layout to choose (Pope et al. 2022)."""

from prefold.common.errors import UnknownName, UsageError
from prefold.plan.advice import Advice, advise
from prefold.plan.calibration import Calibration, Engine, Factors, Kernels, calibrations_of, engines
from prefold.plan.chip.chips import catalogue, find_chip
from prefold.plan.chip.hardware import Chip, Mesh, mesh_of, parse_mesh
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import Fold, Placement, break_even_batch, row_width, table_for
from prefold.plan.cost.memory import Memory, context_left, max_context
from prefold.plan.cost.terms import Terms, terms_of
from prefold.plan.cost.workload import Phase, Workload
from prefold.plan.errors import Infeasible
from prefold.plan.estimate import Estimate, Plan, mfu, plan_layouts
from prefold.plan.levers import Lever, rank_levers, verdict
from prefold.plan.model.config import shape_from_config
from prefold.plan.model.quantization import stored_as
from prefold.plan.model.shape import Experts, Latent, Shape, State, find_shape, presets
from prefold.plan.page.page import write_plot
from prefold.plan.serving import DEFAULT_ENGINE, Service, Serving, kv_type, require_positions, serve
from prefold.plan.sweep import Space, Target, batches, fewest, meshes, pareto, types_to_try
from prefold.plan.this_machine import THIS, this_chip

__all__ = [
    "DEFAULT_ENGINE",
    "THIS",
    "Advice",
    "Calibration",
    "Case",
    "Chip",
    "Engine",
    "Estimate",
    "Experts",
    "Factors",
    "Fold",
    "Infeasible",
    "Kernels",
    "Latent",
    "Lever",
    "Memory",
    "Mesh",
    "Phase",
    "Placement",
    "Plan",
    "Service",
    "Serving",
    "Shape",
    "Space",
    "State",
    "Target",
    "Terms",
    "UnknownName",
    "UsageError",
    "Workload",
    "advise",
    "batches",
    "break_even_batch",
    "calibrations_of",
    "catalogue",
    "context_left",
    "engines",
    "fewest",
    "find_chip",
    "find_shape",
    "kv_type",
    "max_context",
    "mesh_of",
    "meshes",
    "mfu",
    "pareto",
    "parse_mesh",
    "plan_layouts",
    "presets",
    "rank_levers",
    "require_positions",
    "row_width",
    "serve",
    "shape_from_config",
    "stored_as",
    "table_for",
    "terms_of",
    "this_chip",
    "types_to_try",
    "verdict",
    "write_plot",
]
