"""A fold tried on the skeleton, and the modules that no pass for a row enters.

A serial block's experts come after the last column; they are most of the block, and none of it is read for a table.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed, UnsupportedModel
from prefold.convert.experiment.discover import Discovery
from prefold.convert.experiment.tokens import (
    are_rows,
    beside_masks,
    experiment_tokens,
    padding_mask,
    same_rows,
)
from prefold.convert.experiment.trace import Trace, trace
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import Linear, compute_rows
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
    """Name the modules of first blocks that no pass for a row enters, if rows are the same without them.

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
    try:
        with _left_out(skeleton, unreached):
            return all(torch.equal(compute_rows(skeleton, cut, ids), one) for cut, one in zip(cuts, rows, strict=True))
    except ModelFailed:
        return False  # a weight is used by others than the module that holds it


def _outermost(model: nn.Module, name: str, entered: set[str], stored: set[str]) -> Iterator[str]:
    """Yield the largest parts with weights that a pass does not enter, but none of stored modules or of lists."""
    for part, child in model.get_submodule(name).named_children():
        inner = f"{name}.{part}"
        if any(f"{each}.".startswith(f"{inner}.") for each in entered | stored):
            if inner not in stored and not isinstance(child, nn.ModuleList):
                yield from _outermost(model, inner, entered, stored)
        elif next(child.parameters(), None) is not None:
            yield inner


def require_unmoved_by_masks(model: PreTrainedModel, first_block: str, cut: Cut, ids: torch.Tensor) -> None:
    """Require that modules of a row return the same for tokens that masks stand beside.

    Raises:
        UnsupportedModel: one does not; where the model does not run on such tokens, nothing is required.
    """
    mixed = beside_masks(model.config, ids)
    if mixed is None:
        return
    try:
        passes = [trace(model, cut.side, first_block, each) for each in (ids, mixed)]
    except ModelFailed:
        return
    for column in cut.stored:
        shown = [part for each in passes for part in _at_odd_places(each, column.module)]
        if len(shown) == len(passes) and not same_rows(*shown):
            raise UnsupportedModel([f"{column.module} returns something else for a token beside masks"])


def _at_odd_places(seen: Trace, module: str) -> Iterator[torch.Tensor]:
    for call in seen.calls.get(module, [])[:1]:
        if are_rows(call.output):
            yield call.output[:, 1::2]  # type: ignore[index]  # it is a tensor


def check_fold_on_skeleton(
    model: PreTrainedModel, first_block: str, cut: Cut, found: Discovery, ids: torch.Tensor
) -> None:
    """Replace the skeleton's modules by columns that hold the experiment's rows, and compare the block's output.

    Raises:
        UnsupportedModel: the block does not run with columns in place of its modules, or returns other values.
    """
    # Importing the runtime changes how transformers loads models; only a conversion should cause that.
    from prefold.runtime.columns_prefold import FoldedInputError
    from prefold.runtime.modeling_prefold import fold_modules

    linear = Linear(model, cut, cut.sum) if cut.sum else None
    rows, added = _rows(cut, found, ids, linear), dict(linear.added()) if linear else {}
    model.float()
    fold_modules(model, cut.as_json(cut.table.tensor))
    for name, values in {f"{cut.embedding}.weight": rows, **added}.items():
        module, _, parameter = name.rpartition(".")
        setattr(model.get_submodule(module), parameter, nn.Parameter(values.float(), requires_grad=False))
    for before, mask in ((found.block_output, None), (found.padded_output, padding_mask())):
        try:
            after = trace(model, cut.side, first_block, ids, attention_mask=mask).block_output
        except (ModelFailed, FoldedInputError) as error:
            raise UnsupportedModel(
                [f"the first block does not run with columns in its modules' place: {error}"]
            ) from error
        if before is None or after is None or not _same_where_shown(before, after, mask):
            raise UnsupportedModel(["the first block says something else with columns in its modules' place"])


def _same_where_shown(before: torch.Tensor, after: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Compare unpadded positions; parallel streams, ``[streams, batch, seq, width]``, count as one row."""
    if mask is None or before.shape != after.shape:
        return before.shape == after.shape and same_rows(before, after)
    axis = next((axis for axis in range(before.dim() - 1) if before.shape[axis : axis + 2] == mask.shape), None)
    if axis is None:
        return False
    shown = [part.movedim((axis, axis + 1), (0, 1))[mask == 1] for part in (before, after)]
    return same_rows(*shown)


def _rows(cut: Cut, found: Discovery, ids: torch.Tensor, linear: Linear | None) -> torch.Tensor:
    """Lay the experiment's rows out by the cut, ``[rows, row_width]``; rows of other tokens are zero."""
    known = cut.rows_of({module.name: module.rows.reshape(ids.numel(), -1) for module in found.columns})
    known = linear.completed(known) if linear else known
    rows = known.new_zeros(int(ids.max()) + 1, known.shape[1])
    rows[ids.flatten()] = known
    return rows
