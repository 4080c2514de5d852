"""A forward pass that hooks watch, and may end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.errors import model_code
from prefold.convert.model.inputs import Side


class _Stop(Exception):
    """Raised inside a forward pass to leave it."""


@contextmanager
def hooks(model: nn.Module, pre: dict[str, Any], post: dict[str, Any]) -> Iterator[None]:
    """Hang forward (pre-)hooks on modules by name while the block lasts."""
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in pre.items()]
    handles += [model.get_submodule(name).register_forward_hook(hook) for name, hook in post.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_until(model: nn.Module, inputs: dict[str, Any]) -> None:
    """Run a forward pass that a hook may end early by raising ``stop()``."""
    try:
        with model_code():
            model(**inputs)
    except _Stop:
        return


def run_side(
    model: PreTrainedModel, side: Side, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> None:
    """Run one side of a model over ``[batch, seq]`` tokens, until a hook ends the pass."""
    run_until(model, side.inputs(model, input_ids, attention_mask))


def stop(*_: Any) -> None:
    """End the pass under way: usable as a forward hook."""
    raise _Stop
