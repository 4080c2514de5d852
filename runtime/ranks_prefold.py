"""Run a folded checkpoint on several ranks: transformers' tensor parallelism cuts it as it cuts its source.

This file travels in every folded checkpoint beside ``modeling_prefold.py``, and needs torch and transformers alone.
Every rank has the whole table. Of a row it takes what the folded modules would have computed on that rank, which the
plan of the source says; so nothing is sent between ranks for the first look-ups.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .columns_prefold import columns_of, unread_of

# Styles of a plan by what a module gives on each rank: its part of the output, as much of it as its input is of the
# whole input, or all of it. Whatever else a plan says is not known here.
_PART, _FOLLOWS = "colwise", "replicated_with_grad_allreduce"
_WHOLE = {
    "all_reduce",
    "colwise_gather_output",
    "colwise_rep",
    "embedding_colwise",
    "embedding_rowwise",
    "mla_kv_a_proj",
    "moe_tp_experts",
    "replicate",
    "rowwise",
    "rowwise_rep",
    "rowwise_split_input",
}
_BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")
_logger = logging.get_logger("transformers.prefold")

Share = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class UnknownShare(ValueError):
    """A plan has no share of a folded module's output for each rank."""


def distributor_of(source: type[PreTrainedModel]) -> Any:
    """Derive how a model is laid out over ranks, before its weights are loaded: as the source's, and columns cut."""

    def maybe_distribute_model(_: Any, model: Any, distributed_config: Any, mesh_manager: Any) -> Any:
        if mesh_manager is None or distributed_config.tp_size == 1:
            return source.maybe_distribute_model(model, distributed_config, mesh_manager)
        asked, mesh = distributed_config.tp_plan, mesh_manager.get_mesh("tp")
        plan = model.tp_plan | (asked if isinstance(asked, dict) else {})
        shapes, tables = _shapes(model), {fold["table"]["module"] for fold in model.prefold_folds}
        try:
            shares = {name: _share(plan, name, shape, mesh) for name, shape in shapes.items()}
            away = {*shapes, *tables}
        except UnknownShare as error:
            _logger.warning_once(f"prefold: {error}: every rank computes all of the first layer")
            shares, away = {}, {_block(name) for name in [*shapes, *tables]}
        model._tp_plan = {name: style for name, style in model.tp_plan.items() if name not in tables}
        with _aside(model, away):
            distributed = source.maybe_distribute_model(model, distributed_config, mesh_manager)
        for name, share in shares.items():
            model.get_submodule(name).register_forward_hook(partial(_take_share, share))
        return distributed

    return classmethod(maybe_distribute_model)


def _shapes(model: Any) -> dict[str, list[int]]:
    """Return the folded modules by name, with the shape of their output for a token."""
    found: dict[str, list[int]] = {}
    for fold in model.prefold_folds:
        behind = fold["sum"]["columns"] if fold["sum"] else []
        folded = [*columns_of(fold), *unread_of(fold), *fold["merged"], *behind]
        found |= {entry["module"]: entry["shape"] for entry in folded}
    return found


def _share(plan: dict[str, str], name: str, shape: list[int], mesh: Any) -> Share:
    """Return a function of output and input that takes one rank's share of a folded module's output."""
    style, inner = plan.get(name, plan.get(_pattern(name))), _inner(plan, name)
    if style == _PART and len(shape) == 1:
        return partial(_part, mesh=mesh)
    if style == _FOLLOWS or (style is None and len(shape) > 1 and not inner):
        return partial(_as_input, mesh=mesh, dim=-len(shape))
    if style in _WHOLE or (style is None and (not inner or inner & _WHOLE)):
        return _all
    raise UnknownShare(f"{name} is {style or ', '.join(sorted(inner))} in the tensor parallel plan")


def _pattern(name: str) -> str:
    """Write a module's name as plans do, with a star for the number of a layer."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _inner(plan: dict[str, str], name: str) -> set[str]:
    """Return the styles of a module's own parts: it gives all of its output if one of them sums or gathers it."""
    starts = (f"{name}.", f"{_pattern(name)}.")
    return {style for key, style in plan.items() if key.startswith(starts)}


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found[1] if found else name


def _take_share(share: Share, _: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return share(output, args[0])


def _all(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output


def _part(output: torch.Tensor, _: torch.Tensor, *, mesh: Any, dim: int = -1) -> torch.Tensor:
    """Return a rank's share of a matrix that is cut by its rows: the last rank may have less."""
    width = output.shape[dim]
    size = -(-width // mesh.size())
    start = min(mesh.get_local_rank() * size, width)
    return output.narrow(dim, start, min(size, width - start))


def _as_input(output: torch.Tensor, given: torch.Tensor, *, mesh: Any, dim: int) -> torch.Tensor:
    """Return the heads that the input has, ``[batch, seq, heads, width]``: all, or those of this rank."""
    whole = given.ndim != output.ndim or given.shape[dim] == output.shape[dim]
    return output if whole else _part(output, given, mesh=mesh, dim=dim)


@contextmanager
def _aside(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Take modules out of a model while the block lasts, so that they are not cut."""
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in names if not _is_within(name, names)}
    kept = {parent: dict(parent._modules) for parent in parents.values()}
    for name, parent in parents.items():
        del parent._modules[name.rpartition(".")[2]]
    yield
    for parent, children in kept.items():
        left = dict(parent._modules)
        parent._modules.clear()
        parent._modules.update({part: left.get(part, child) for part, child in children.items()})


def _is_within(name: str, names: set[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in names)
