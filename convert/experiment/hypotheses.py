"""What if a module's output were something else? Run all such questions side by side in one pass."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prefold.convert.errors import UnsupportedModel
from prefold.convert.experiment.token_pure import TokenPureModule
from prefold.convert.experiment.tokens import BATCH, same_rows
from prefold.convert.experiment.trace import Override, trace
from prefold.convert.model.inputs import Side


@dataclass(frozen=True)
class _Hypothesis:
    """What would happen if one module's output were something else: unreadable, or zero and part of the residual."""

    module: TokenPureModule
    merged_into: TokenPureModule | None = None

    def joins(self, name: str) -> bool:
        """Return whether it is that of a module that becomes part of another."""
        return self.merged_into is not None and self.merged_into.name == name


def _replayed(module: TokenPureModule, hypotheses: list[_Hypothesis]) -> Override:
    """Return the module's rows once as they are and once more as each hypothesis has them, stacked along the batch."""
    variants = [module.rows]
    for hypothesis in hypotheses:
        rows = module.rows
        if hypothesis.module is module:
            rows = torch.full_like(rows, 0 if hypothesis.merged_into else torch.nan)
        elif hypothesis.merged_into is module:
            rows = rows + hypothesis.module.rows
        variants.append(rows)
    stacked = torch.cat(variants)
    return lambda _: stacked.clone()


def _try_all(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    modules: list[TokenPureModule],
    hypotheses: list[_Hypothesis],
) -> list[bool]:
    """Run all hypotheses side by side in one pass, and say which leave the block's output as it was.

    They are independent: every module is replayed, so only what stays alive can read another's output.
    """
    overrides = {module.name: _replayed(module, hypotheses) for module in modules}
    output = trace(model, side, first_block, ids.repeat(1 + len(hypotheses), 1), overrides).block_output
    if output is None:
        return [False for _ in hypotheses]
    batches = BATCH * (1 + len(hypotheses))
    axis = next((axis for axis, size in enumerate(output.shape) if size == batches), None)
    if axis is None:
        return [False for _ in hypotheses]
    unchanged, *others = output.split(BATCH, axis)
    return [same_rows(unchanged, other) for other in others]


def find_unread_and_mergeable(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, modules: list[TokenPureModule]
) -> tuple[set[str], str | None]:
    """Name the modules whose output nobody reads, and the one that may be added to the residual beforehand."""
    poisoned = [_Hypothesis(module) for module in modules]
    merged = _merged(modules)
    valid = _try_all(model, side, first_block, ids, modules, poisoned + merged)
    unread = {h.module.name for h, ok in zip(poisoned, valid, strict=False) if ok}
    read = [module.name for module in modules if module.name not in unread]
    if not read:
        raise UnsupportedModel(["its first block reads nothing of what follows its tokens"])
    holds = [h.module.name for h, ok in zip(merged, valid[len(poisoned) :], strict=True) if ok and h.joins(read[0])]
    return unread, next((name for name in holds if name in read), None)


def _merged(modules: list[TokenPureModule]) -> list[_Hypothesis]:
    """Return the hypotheses that a module may be added to one that runs before it."""
    pairs = [(module, into) for module in modules for into in modules if into.order < module.order]
    return [_Hypothesis(module, into) for module, into in pairs if into.shape == module.shape]
