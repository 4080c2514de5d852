"""One forward pass, watched from the embedding to the end of the first block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


class _Stop(Exception):
    """Raised inside a forward pass to leave it: what follows is of no interest."""


@dataclass
class Call:
    """What one module returned in one pass.

    Attributes:
        order: when the module was entered, counted over all modules.
        output: the returned tensor, or None where the module returned something else.
        tensor: the returned tensor, or the first of several.
        returns_indices: it returned whole numbers beside tensors, as a router does.
    """

    order: int
    output: torch.Tensor | None
    tensor: torch.Tensor | None
    returns_indices: bool = False


@dataclass
class Trace:
    """All calls of one pass by module name, and the first block's output."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    block_output: torch.Tensor | None = None


Override = Callable[[torch.Tensor], torch.Tensor]


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return a module's output, or the first element of a tuple, if that is a tensor."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, torch.Tensor) else None


def _has_indices(output: Any) -> bool:
    parts = output if isinstance(output, tuple | list) else ()
    return any(isinstance(part, torch.Tensor) and not part.is_floating_point() for part in parts)


@contextmanager
def hooks(model: nn.Module, pre: dict[str, Any], post: dict[str, Any]) -> Iterator[None]:
    """Hang forward (pre-)hooks on modules by name, and take them off again."""
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in pre.items()]
    handles += [model.get_submodule(name).register_forward_hook(hook) for name, hook in post.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_until(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
    """Run a forward pass that a hook may end early by raising ``stop()``."""
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Stop:
        return


def stop(*_: Any) -> None:
    """End the pass under way: usable as a forward hook."""
    raise _Stop


def trace(
    model: nn.Module,
    first_block: str,
    input_ids: torch.Tensor,
    overrides: dict[str, Override] | None = None,
    attention_mask: torch.Tensor | None = None,
) -> Trace:
    """Run ``[batch, seq]`` tokens up to the end of the first block and record every module's output.

    ``overrides`` change what a module returns, as if it were another. ``attention_mask``, ``[batch, seq]``, is
    0 where a token is padding.
    """
    seen, orders = Trace(), list[int]()
    watched = [name for name, _ in model.named_modules() if name and not first_block.startswith(f"{name}.")]
    entered: dict[str, list[int]] = {name: [] for name in watched}

    def enter(name: str) -> Any:
        def hook(*_: Any) -> None:
            entered[name].append(len(orders))
            orders.append(0)

        return hook

    def leave(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if overrides and name in overrides:
                output = _overridden(output, overrides[name])
            tensor = first_tensor(output)
            copy = None if tensor is None else tensor.clone()  # the block may add to its own intermediate in place
            alone = copy if isinstance(output, torch.Tensor) else None
            call = Call(entered[name].pop(), alone, copy, _has_indices(output))
            seen.calls.setdefault(name, []).append(call)
            if name == first_block:
                seen.block_output = copy
                stop()
            return output

        return hook

    with hooks(model, {name: enter(name) for name in watched}, {name: leave(name) for name in watched}):
        run_until(model, input_ids, attention_mask)
    return seen


def _overridden(output: Any, override: Override) -> Any:
    if isinstance(output, tuple | list):
        return type(output)([override(output[0]), *output[1:]])
    return override(output)
