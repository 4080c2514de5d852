"""The part of a model that an experiment runs: its stacks of blocks, cut short, without weights.

The whole model is built on the meta device, where it costs nothing; then all blocks but the first of each kind are cut
away, and what is left is given weights that take little memory.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.convert.errors import ModelFailed, UnsupportedModel, model_code
from prefold.convert.model.filling import allocated, fill, require_fillable, windows
from prefold.convert.model.running import hooks, stop


class Last:
    """The output of the last block that ran."""

    def __init__(self) -> None:
        self.output: Any = None

    def __reduce__(self) -> tuple[type["Last"], tuple[()]]:
        return Last, ()  # a copy of a model starts between passes

    def keep(self, _: nn.Module, __: Any, output: Any) -> None:
        """Remember a block's output: a forward hook."""
        self.output = output


class Skipped(nn.Module):
    """Stands for a block that was cut out: returns what the block before it returned.

    The stack keeps its length, so that the k-th layer of settings, masks, caches and names is the same block. Attribute
    access is forwarded to the original block, which is no part of the model any more and stays on the meta device.
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
            raise CalledAlone("the block before was not called as a module")
        return self._last.output


class CalledAlone(ModelFailed):
    """A model calls the ``forward`` of its blocks, which runs no hooks."""


class WithHooks:
    """Stands for the ``forward`` of a block that its model calls alone: runs the block's hooks, too."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block as a module."""
        del self._block.forward
        try:
            return self._block(*args, **kwargs)
        finally:
            self._block.forward = self


def call_with_hooks(model: nn.Module, stack: "Stack") -> None:
    """Let the hooks of blocks run whose ``forward`` a model calls alone."""
    for block in _blocks(model.get_submodule(stack.name)):
        block.forward = WithHooks(block)


def prune(model: nn.Module, stack: "Stack", keep: Collection[int]) -> None:
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
    """Return the ties of every model inside a model; the patterns mean nothing once blocks are gone."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    return [(part, part.get_expanded_tied_weights_keys(all_submodels=False)) for part in parts]


def _cut_ties(model: PreTrainedModel, ties: dict[str, str]) -> None:
    """Forget ties with a block that is gone."""
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    there |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    left = {target: source for target, source in ties.items() if target in there and source in there}
    if left != ties:
        model._tied_weights_keys = left
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {t: source for t, source in tied.items() if t in there and source in there}


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: the name of its module list, and for every block the index of the first one of its kind."""

    name: str
    kinds: list[int]

    @property
    def first_block(self) -> str:
        """The name of the first block."""
        return f"{self.name}.0"

    @property
    def kept(self) -> list[int]:
        """The first block of each kind."""
        return sorted(set(self.kinds))


def find_stacks(model: nn.Module, within: str = "") -> list[Stack]:
    """Find the stacks of blocks in the part of a model that ``within`` names, the one with most parameters first.

    They are its module lists that are in no other and whose modules are made of modules.
    """
    names = [name for name in _outermost_lists(model, within) if _holds_blocks(model.get_submodule(name))]
    names.sort(key=lambda name: -sum(weight.numel() for weight in model.get_submodule(name).parameters()))
    return [_stack(model, name) for name in names]


def first_to_run(model: nn.Module, stacks: list[Stack], run: Callable[[], object]) -> Stack | None:
    """Return the stack whose first block ``run`` enters first, by ``run_until``; None where it enters none.

    A model of text and images has stacks that token ids never reach, and some of them are large.
    """
    entered: list[Stack] = []

    def enter(stack: Stack) -> Callable[..., None]:
        def hook(*_: object) -> None:
            entered.append(stack)
            stop()

        return hook

    with hooks(model, {stack.first_block: enter(stack) for stack in stacks}, {}):
        run()
    return next(iter(entered), None)


def _stack(model: nn.Module, name: str) -> Stack:
    while deeper := _deeper(model, name):
        name = deeper
    kinds = [_signature(block) for block in _blocks(model.get_submodule(name))]
    return Stack(name, [kinds.index(kind) for kind in kinds])


def _blocks(stack: nn.Module) -> list[nn.Module]:
    """Return a list's modules, repeated ones included."""
    return list(stack) if isinstance(stack, nn.ModuleList) else []


def _outermost_lists(model: nn.Module, within: str) -> list[str]:
    found: list[str] = []
    for name, module in model.get_submodule(within).named_modules(prefix=within):
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _holds_blocks(stack: nn.Module) -> bool:
    """Return whether a list holds modules made of modules: a list of projections or embeddings is no stack."""
    return any(next(block.children(), None) is not None for block in _blocks(stack))


def _deeper(model: nn.Module, name: str) -> str | None:
    """Name the list that a stack's first element is, or consists of if that holds blocks of one class (a group)."""
    first, inner = model.get_submodule(f"{name}.0"), f"{name}.0"
    if not isinstance(first, nn.ModuleList):
        parts = list(first.named_children())
        if len(parts) != 1 or next(first.parameters(recurse=False), None) is not None:
            return None
        inner, first = f"{inner}.{parts[0][0]}", parts[0][1]
    if len({type(block) for block in _blocks(first)}) != 1 or not _holds_blocks(first):
        return None
    return inner


def _signature(block: nn.Module) -> tuple[object, ...]:
    """Return the common properties of blocks of one kind: parameters, and every switch of their modules."""
    shapes = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
    switches = tuple(
        (name, setting, value)
        for name, module in block.named_modules()
        for setting, value in vars(module).items()
        if isinstance(value, bool | str)
    )
    return (*shapes, *switches)


def build_on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the whole model on the meta device, in ``dtype``.

    Raises:
        UnsupportedModel: its config describes none.
    """
    try:
        with torch.device("meta"), model_code():
            model: PreTrainedModel = model_class._from_config(copy.deepcopy(config), dtype=dtype)
    except ModelFailed as failure:
        raise UnsupportedModel([f"{config.model_type}: its config builds no model ({failure})"]) from failure
    model.eval()
    return model


def materialize(model: PreTrainedModel, embedding_rows: int) -> dict[str, int]:
    """Give the model memory, its buffers their own values, and its weights random ones.

    Returns the rows of padding that transformers sets to zero whenever it loads a model, by the embedding's weight.

    Of an embedding only the first ``embedding_rows`` rows are filled, and of the output head nothing: the pages
    of the rest are never touched, and so never allocated. Large weights overlap, see ``windows``.

    Raises:
        UnsupportedModel: its tensors are larger than what this machine can address, or than an experiment fills.
    """
    aside = embeddings_and_head(model)
    require_fillable(model, aside)
    windows([module for module in model.modules() if module not in aside])
    model._apply(lambda tensor: allocated(tensor.shape, tensor.dtype) if tensor.is_meta else tensor)
    for buffer in model.buffers():
        buffer.fill_(buffer.is_floating_point())  # those that transformers sets it sets below; none is left to chance
    with model_code():
        model.tie_weights()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers then sets the buffers alone
    padding = _rows_of_padding(model)
    for weight, row in padding.items():
        model.get_parameter(weight).data[row] = 1
    with model_code():
        model.initialize_weights()
    cleared = {weight: row for weight, row in padding.items() if not model.get_parameter(weight).data[row].any()}
    fill(model, aside, embedding_rows)
    return cleared


def _rows_of_padding(model: PreTrainedModel) -> dict[str, int]:
    modules = [(f"{name}.weight", each) for name, each in model.named_modules() if isinstance(each, nn.Embedding)]
    return {name: each.padding_idx for name, each in modules if each.padding_idx is not None}


def embeddings_and_head(model: PreTrainedModel) -> set[nn.Module]:
    """Return all embeddings of a model, and its output head."""
    head = model.get_output_embeddings()
    return {module for module in model.modules() if isinstance(module, nn.Embedding) or module is head}
