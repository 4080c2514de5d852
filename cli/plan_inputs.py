"""The inputs of a plan on the command line: a model's shape, a chip, meshes and batches to look at."""

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefold.common.errors import UsageError

if TYPE_CHECKING:
    from prefold.plan import Calibration, Chip, Mesh, Service, Shape, Space, Target, Workload


def open_shape(model: str, revision: str | None, *, gated: bool | None = None, parallel: bool | None = None) -> "Shape":
    """Return the shape of a preset, or of a checkpoint's config: a folder, a ``config.json`` or a hub id.

    Fields that a config leaves out are found by experiment, as ``prefold inspect`` does it.
    """
    from prefold.plan import find_shape, shape_from_config

    if not _is_checkpoint(model):
        return _assumed(find_shape(model), gated, parallel)
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().exists():  # what opens others takes seconds
        raise UsageError(f"{model}: no such file or folder")
    from prefold.convert.checkpoint import open_config

    opened = open_config(model, revision)
    config = opened.config
    _tell_unknown_type(config)
    # Refuses a config that says too little, before any experiment; whether it is gated, that may tell.
    shape_from_config(config, gated=False)
    parameters = None
    if gated is None or parallel is None:
        found, parameters = _tried(model, opened.revision)
        parallel = parallel if parallel is not None else found
    try:
        return shape_from_config(config, name=model, gated=gated, parallel=parallel, parameters=parameters)
    except UsageError as error:  # of whether it is gated: all else was refused before
        raise UsageError(f"{error}; --gated or --not-gated does") from error


def _tell_unknown_type(config: dict[str, Any]) -> None:
    from prefold.cli.show.show import note
    from prefold.plan import stored_as

    if found := stored_as(config)[1]:
        note(found)


def _is_checkpoint(model: str) -> bool:
    """Whether it is a path or a hub id; a name without a slash is a preset's, unless there is such a file."""
    from prefold.plan import presets

    return model.lower() not in presets() and ("/" in model or model.endswith(".json") or Path(model).exists())


def _assumed(shape: "Shape", gated: bool | None, parallel: bool | None) -> "Shape":
    told: dict[str, Any] = {"gated": gated, "parallel": parallel}
    return replace(shape, **{name: value for name, value in told.items() if value is not None})


def _tried(model: str, revision: str | None) -> tuple[bool | None, int | None]:
    """Return whether the experiment finds an FFN that folds, and the parameters of the skeleton."""
    from prefold.cli.show.show import note
    from prefold.convert import inspect_checkpoint

    inspection = inspect_checkpoint(model, revision=revision)
    savings = inspection.savings
    if savings is None:
        note(f"{model} {inspection.verdict}; figures of it folded are of a table that it cannot have")
        return None, None
    return (True if savings.merged_width else None), savings.checkpoint_before // savings.dtype.itemsize


def open_chip(name: str, *, refresh: bool = False) -> "tuple[Chip, tuple[Calibration, ...]]":
    """Return a chip of the catalogue, of a TOML file, or this machine, with its calibration if prefold has none.

    ``refresh`` measures this machine again.
    """
    from prefold.plan import THIS, find_chip, this_chip

    if name.lower() != THIS:
        return find_chip(name), ()
    chip, factors = this_chip(refresh=refresh)
    if chip.note:
        from prefold.cli.show.show import note

        note(chip.note)
    return chip, (factors,)


def parse_service(
    prompt: int | None, new_tokens: int | None, concurrency: int | None, engine: str | None, *, pass_given: bool
) -> "Service | None":
    """Return the requests to serve; None where a pass is planned."""
    from prefold.plan import DEFAULT_ENGINE, Service

    if prompt is None:
        given = {"--new-tokens": new_tokens, "--concurrency": concurrency, "--engine": engine}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{', '.join(wrong)}: of requests to serve; --prompt is missing")
        return None
    if pass_given:
        raise UsageError("--prompt plans serving; --phase, --batch, --context and --branches are of one pass")
    if new_tokens is None:
        raise UsageError("--new-tokens: how many are generated for each prompt?")
    if concurrency is not None and concurrency < 1:
        raise UsageError(f"--concurrency: {concurrency} requests; at least one")
    return Service(prompt, new_tokens, engine or DEFAULT_ENGINE)


def parse_target(
    latency: str | None, cost: float | None, ttft: str | None, service: "Service | None"
) -> "Target | None":
    """Return the target of a search; None where no limit is given."""
    if latency is None and cost is None and ttft is None:
        return None
    if cost is not None and (latency is not None or ttft is not None):
        raise UsageError("--max-cost beside --latency-target or --ttft-target: give one of the two kinds")
    if ttft is not None and service is None:
        raise UsageError("--ttft-target: of requests to serve; --prompt is missing")
    from prefold.plan import Target

    return Target(_seconds(latency), _cost(cost), _seconds(ttft))


def _seconds(text: str | None) -> float | None:
    from prefold.common.units import parse_quantity

    if text is not None and not parse_quantity(text, "seconds"):
        raise UsageError(f"{text}: no time to reach; a target is above 0")
    return None if text is None else parse_quantity(text, "seconds")


def _cost(cost: float | None) -> float | None:
    if cost is not None and not 0 < cost < inf:
        raise UsageError(f"--max-cost: {cost} is no number of chip-seconds above 0")
    return cost


def require_acceptance(acceptance: float | None) -> None:
    """Raise ``UsageError`` for what is no probability."""
    if acceptance is not None and not 0 <= acceptance <= 1:
        raise UsageError(f"--acceptance: {acceptance} is no probability from 0 to 1")


def fit_pass(
    workload: "Workload",
    shape: "Shape",
    phase: str | None,
    context: int | None,
    weights: str | None,
    kv: str | None,
    service: "Service | None",
) -> "Workload":
    """Return a pass with what the model, or the engine, has where nothing is given."""
    from prefold.plan import kv_type, require_positions

    if service:
        require_positions(shape, service)
    stored = weights or shape.stored
    cached = kv or (kv_type(service.engine, stored) if service else "bf16")
    workload = replace(workload, weights=stored, kv=cached)
    if phase is None and service is None and not shape.decodes:
        workload = replace(workload, phase="prefill")
    beyond = workload.positions - shape.max_position_embeddings if shape.max_position_embeddings else 0
    cut = context is None and beyond > 0
    return replace(workload, context=max(1, workload.context - beyond)) if cut else workload


def space_of(
    shape: "Shape",
    chip: "Chip",
    workload: "Workload",
    mesh: "Mesh | None",
    batch: int | None,
    types: tuple[tuple[str, str], ...] = (),
    calibrations: "tuple[Calibration, ...]" = (),
) -> "Space":
    """Return where to look: given values stay; a search, with ``types``, tries all chips and batches that are not."""
    from prefold.plan import Space, batches, fewest, meshes

    if not types:
        found = (mesh or fewest(shape, chip, workload),)
        return Space(shape, chip, workload, found, (workload.batch,), calibrations)
    tried = batches(workload.branches) if batch is None else (batch,)
    return Space(shape, chip, workload, (mesh,) if mesh else meshes(chip), tried, calibrations, types)


def asked_mesh(chip: "Chip", chips: int | None, mesh: str | None) -> "Mesh | None":
    """Return the mesh that is asked for; None without a shape or a number of chips."""
    from prefold.plan import mesh_of, parse_mesh

    if chips is None and mesh is None:
        return None
    return mesh_of(chip, chips, parse_mesh(mesh) if mesh else None)
