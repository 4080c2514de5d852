"""Fold a skeleton with the runtime's own code and see that its first block still says the same."""

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.cut import Cut
from prefold.convert.discover import Discovery, padding_mask, same_rows
from prefold.convert.errors import UnsupportedModel
from prefold.convert.skeleton import Stack
from prefold.convert.trace import trace


def try_fold(model: PreTrainedModel, stack: Stack, cut: Cut, found: Discovery, ids: torch.Tensor) -> None:
    """Replace the skeleton's modules by columns that hold the experiment's rows, and compare the block's output.

    Raises:
        UnsupportedModel: the block does not run with columns in place of its modules, or says something else.
    """
    # Importing the runtime registers folded types with transformers; only who folds should cause that.
    from prefold.runtime.modeling_prefold import fold_modules

    fold_modules(model, cut.section())
    table = model.get_submodule(cut.embedding)
    rows = _rows(cut, found, ids)
    table.weight = nn.Parameter(rows, requires_grad=False)
    numbered = torch.arange(ids.numel()).view(ids.shape)
    for before, mask in ((found.block_output, None), (found.padded_output, padding_mask())):
        try:
            after = trace(model, stack.first_block, numbered, attention_mask=mask).block_output
        except (AttributeError, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UnsupportedModel(
                [f"the first block does not run with columns in its modules' place: {error}"]
            ) from error
        shown = torch.ones_like(ids) if mask is None else mask
        if before is None or after is None or not same_rows(before[shown == 1], after[shown == 1]):
            raise UnsupportedModel(["the first block says something else with columns in its modules' place"])


def _rows(cut: Cut, found: Discovery, ids: torch.Tensor) -> torch.Tensor:
    """Lay out the experiment's rows as the cut says, ``[tokens, row_width]``."""
    by_name = {module.name: module.rows.reshape(ids.numel(), -1) for module in found.columns}
    residual = by_name[cut.residual.module]
    if cut.merged:
        residual = residual + by_name[cut.merged.module]
    return torch.cat([residual, *(by_name[column.module] for column in cut.columns)], dim=1)
