"""One forward pass, watched from the embedding to the end of the first block."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.model.inputs import Side
from prefold.convert.model.running import hooks, run_side, run_until, stop


@dataclass
class Call:
    """The arguments and the output of one call of a module in a pass.

    Attributes:
        order: of entry, counted over all modules.
        taken: the first tensor argument, if there is one.
        output: the returned tensor; None where the module returned anything else.
        tensor: the returned tensor, or the first of several.
        returns_indices: whole numbers beside tensors, as a router returns.
    """

    order: int
    taken: torch.Tensor | None
    output: torch.Tensor | None
    tensor: torch.Tensor | None
    returns_indices: bool = False


@dataclass
class Trace:
    """All calls of one pass by module name, and the first block's output."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    block_output: torch.Tensor | None = None


Override = Callable[[torch.Tensor], torch.Tensor]
Overrides = dict[str, Override]  # by the module whose output is changed


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return a module's output, or the first element of a tuple, if that is a tensor."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, torch.Tensor) else None


def _has_indices(output: Any) -> bool:
    parts = output if isinstance(output, tuple | list) else ()
    return any(isinstance(part, torch.Tensor) and not part.is_floating_point() for part in parts)


def trace(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    input_ids: torch.Tensor,
    overrides: Overrides | None = None,
    attention_mask: torch.Tensor | None = None,
    **more: Any,
) -> Trace:
    """Run ``[batch, seq]`` tokens up to the end of the first layer and record every module's output.

    ``overrides`` change the outputs of modules. ``attention_mask``, ``[batch, seq]``, is 0 where a token is padding.
    ``more`` goes to the model's ``forward``.
    """
    following = _next_block(model, first_block)
    recorder = _Recorder(first_block, overrides or {}, is_last=following is None)
    names = [name for name, _ in model.named_modules() if name and not first_block.startswith(f"{name}.")]
    handles = []
    if following:
        hook = recorder.enter_next_block
        handles.append(model.get_submodule(following).register_forward_pre_hook(hook, with_kwargs=True))
    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(recorder.enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.leave(name)))
    try:
        run_until(model, side.inputs(model, input_ids, attention_mask) | more)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.seen


@torch.no_grad()
def block_outputs(
    model: PreTrainedModel, side: Side, first_block: str, input_ids: torch.Tensor, overrides: Overrides
) -> list[torch.Tensor]:
    """Run ``[batch, seq]`` tokens through the blocks of a stack; returns the output of each."""
    stack, outputs = first_block.rpartition(".")[0], list[torch.Tensor]()

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found = first_tensor(output)
        outputs.extend([] if found is None else [found.clone()])

    def override(change: Override) -> Any:
        return lambda _, __, output: _overridden(output, change)

    blocks = {f"{stack}.{index}": keep for index, _ in model.get_submodule(stack).named_children()}
    with hooks(model, {}, {name: override(change) for name, change in overrides.items()} | blocks):
        run_side(model, side, input_ids)
    return outputs


def _next_block(model: nn.Module, first_block: str) -> str | None:
    """Name the block behind the first; its input is the first layer's output, norms behind the block included."""
    stack, _, index = first_block.rpartition(".")
    blocks = model.get_submodule(stack)
    following = str(int(index) + 1)
    return f"{stack}.{following}" if following in dict(blocks.named_children()) else None


class _Recorder:
    def __init__(self, first_block: str, overrides: Overrides, *, is_last: bool) -> None:
        self.seen = Trace()
        self._first_block, self._overrides, self._is_last = first_block, overrides, is_last
        self._entered = 0
        self._open: dict[str, list[tuple[int, torch.Tensor | None]]] = {}

    def enter(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken = _first_tensor_of(args, kwargs)
            self._open.setdefault(name, []).append((self._entered, None if taken is None else taken.clone()))
            self._entered += 1

        return hook

    def leave(self, name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if name in self._overrides:
                output = _overridden(output, self._overrides[name])
            order, taken = self._open[name].pop()
            tensor = first_tensor(output)
            copy = None if tensor is None else tensor.clone()  # the block may add to its own intermediate in place
            alone = copy if isinstance(output, torch.Tensor) else None
            self.seen.calls.setdefault(name, []).append(Call(order, taken, alone, copy, _has_indices(output)))
            if name == self._first_block:
                self.seen.block_output = copy
                if self._is_last:
                    stop()
            return output

        return hook

    def enter_next_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """End the pass with the input of the next block: a hook on it."""
        taken = _first_tensor_of(args, kwargs)
        self.seen.block_output = None if taken is None else taken.clone()
        stop()


def _first_tensor_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    return next((part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)), None)


def _overridden(output: Any, override: Override) -> Any:
    if isinstance(output, tuple | list):
        return type(output)([override(output[0]), *output[1:]])
    return override(output)
