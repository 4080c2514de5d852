"""Fold a skeleton with the runtime's own code and see that its first block still says the same."""

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed, UnsupportedModel
from prefold.convert.experiment.discover import Discovery
from prefold.convert.experiment.tokens import padding_mask, same_rows
from prefold.convert.experiment.trace import trace
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.linear import Linear


def check_fold_on_skeleton(
    model: PreTrainedModel, first_block: str, cut: Cut, found: Discovery, ids: torch.Tensor
) -> None:
    """Replace the skeleton's modules by columns that hold the experiment's rows, and compare the block's output.

    Raises:
        UnsupportedModel: the block does not run with columns in place of its modules, or says something else.
    """
    # Importing the runtime registers folded types with transformers; only who folds should cause that.
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
    """Compare what is not padding; streams beside each other, ``[streams, batch, seq, width]``, count as one row."""
    if mask is None or before.shape != after.shape:
        return before.shape == after.shape and same_rows(before, after)
    axis = next((axis for axis in range(before.dim() - 1) if before.shape[axis : axis + 2] == mask.shape), None)
    if axis is None:
        return False
    shown = [part.movedim((axis, axis + 1), (0, 1))[mask == 1] for part in (before, after)]
    return same_rows(*shown)


def _rows(cut: Cut, found: Discovery, ids: torch.Tensor, linear: Linear | None) -> torch.Tensor:
    """Lay the experiment's rows out as the cut says, ``[rows, row_width]``; of other tokens than its own zeros."""
    by_name = {module.name: module.rows.reshape(ids.numel(), -1) for module in found.columns}
    residual = by_name[cut.residual.module]
    if cut.merged:
        residual = residual + by_name[cut.merged.module]
    parts = [residual, *(by_name[column.module] for column in cut.columns)]
    if linear and cut.sum:
        parts.append(linear.token_parts(by_name[cut.sum.token]).float())
    known = torch.cat(parts, dim=1)
    rows = known.new_zeros(int(ids.max()) + 1, known.shape[1])
    rows[ids.flatten()] = known
    return rows
