"""Cut blocks out of a model without the rest of the model noticing."""

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class Last:
    """What the last block that ran returned."""

    def __init__(self) -> None:
        self.output: Any = None

    def __reduce__(self) -> tuple[type["Last"], tuple[()]]:
        return Last, ()  # a copy of a model starts between passes

    def keep(self, _: nn.Module, __: Any, output: Any) -> None:
        """Remember a block's output: a forward hook."""
        self.output = output


class Skipped(nn.Module):
    """Stands for a block that was cut out: returns what the block before it returned.

    The stack keeps its length, so that whatever the model says of its k-th layer, in settings, masks, caches or
    names, still means the same block. A model that asks the block what it is, or sets it up, reaches the block
    itself, which is no part of the model any more and stays on the meta device.
    """

    def __init__(self, block: nn.Module, last: Last) -> None:
        super().__init__()
        self.training = block.training
        vars(self).update(_block=block, _last=last)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_block"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the last block's output, whatever its form."""
        if self._last.output is None:
            raise ModelFailed("the block before was not called as a module, and what calls forward alone is not seen")
        return self._last.output


def prune(model: nn.Module, stack: _Named, keep: Collection[int]) -> None:
    """Leave only the blocks whose indices are in ``keep``, the first among them, with stand-ins for the others."""
    ties = _ties(model)
    blocks, last = model.get_submodule(stack.name), Last()
    if isinstance(blocks, nn.ModuleList):
        for index, block in enumerate(blocks):
            if index in keep:
                block.register_forward_hook(last.keep)
            else:
                blocks[index] = Skipped(block, last)
    for part, names in ties:
        _cut_ties(part, names)


class Removed(nn.Module):
    """Stands for a module that is gone, for models that initialize its weights without asking: these are empty."""

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(weight=torch.empty(0), bias=torch.empty(0))  # no part of what is loaded


def remove(model: PreTrainedModel, unwanted: nn.Module | None) -> None:
    """Remove every reference to a module, and drop the weight ties that involve it."""
    ties = _ties(model)
    for holder in list(model.modules()):
        for name, part in holder.named_children():
            if part is unwanted:
                setattr(holder, name, Removed())
    for part, names in ties:
        _cut_ties(part, names)


def _ties(model: nn.Module) -> list[tuple[PreTrainedModel, dict[str, str]]]:
    """Return what every model inside a model ties to what; its patterns mean nothing once blocks are gone."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [(part, part.get_expanded_tied_weights_keys(all_submodels=False)) for part in parts]


def _cut_ties(model: PreTrainedModel, ties: dict[str, str]) -> None:
    """Forget what was tied to or from a block that is gone."""
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    there |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    left = {target: source for target, source in ties.items() if target in there and source in there}
    if left != ties:
        model._tied_weights_keys = left
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {t: source for t, source in tied.items() if t in there and source in there}
