"""How far a pass that makes rows goes into the first blocks: what lies behind needs no weights.

A serial block's experts come after the last column; they are most of the block, and none of it is read for a table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import compute_rows
from prefold.convert.model.running import hooks, stop
from prefold.convert.model.skeleton import Stack


class Unreached(nn.Module):
    """Stands for a module that no pass for a row gets to, and ends a pass that does.

    Attribute access is forwarded to the original module, which is on the meta device; its weights are never loaded.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.training = module.training
        vars(self).update(_module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)

    def forward(self, *_: Any, **__: Any) -> None:
        """End the pass."""
        stop()


def leave_out(model: nn.Module, names: list[str]) -> None:
    """Put stand-ins in the places of modules."""
    for name in names:
        model.set_submodule(name, Unreached(model.get_submodule(name)))


@contextmanager
def _left_out(model: nn.Module, names: list[str]) -> Iterator[None]:
    modules = {name: model.get_submodule(name) for name in names}
    leave_out(model, names)
    try:
        yield
    finally:
        for name, module in modules.items():
            model.set_submodule(name, module)


@torch.no_grad()
def find_unreached(skeleton: PreTrainedModel, stacks: list[Stack], cuts: list[Cut]) -> list[str]:
    """Name the modules of first blocks that no pass for a row enters; an experiment shows that rows do without them.

    Of a fold behind a sum, which runs more than that pass, none is named.
    """
    if any(cut.sum for cut in cuts):
        return []
    ids, entered = experiment_tokens(skeleton.config), set[str]()
    names = [name for name, _ in skeleton.named_modules()]
    with hooks(skeleton, {name: lambda *_, name=name: entered.add(name) for name in names}, {}):
        rows = [compute_rows(skeleton, cut, ids) for cut in cuts]
    stored = {module for cut in cuts for module in cut.eliminated}
    unreached = [name for stack in stacks for name in _outermost(skeleton, stack.first_block, entered, stored)]
    return unreached if _do_without(skeleton, unreached, cuts, ids, rows) else []


def _do_without(
    skeleton: PreTrainedModel, unreached: list[str], cuts: list[Cut], ids: torch.Tensor, rows: list[torch.Tensor]
) -> bool:
    """Return whether rows are the same without some modules."""
    try:
        with _left_out(skeleton, unreached):
            return all(torch.equal(compute_rows(skeleton, cut, ids), one) for cut, one in zip(cuts, rows, strict=True))
    except ModelFailed:
        return False  # a weight is used by others than the module that holds it


def _outermost(model: nn.Module, name: str, entered: set[str], stored: set[str]) -> Iterator[str]:
    """Yield the largest parts of a module, weights in them, that a pass does not enter.

    Of a stored module, or of a list, as of experts, whose parts are chosen by what runs, no part is named.
    """
    for part, child in model.get_submodule(name).named_children():
        inner = f"{name}.{part}"
        if any(f"{each}.".startswith(f"{inner}.") for each in entered | stored):
            if inner not in stored and not isinstance(child, nn.ModuleList):
                yield from _outermost(model, inner, entered, stored)
        elif next(child.parameters(), None) is not None:
            yield inner
