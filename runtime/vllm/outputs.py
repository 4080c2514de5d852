"""What one of vLLM's modules returns, found by running it before it has weights."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.linear import LinearBase, RowParallelLinear


@dataclass(frozen=True)
class Outputs:
    """What a module returns.

    Attributes:
        pair: a second value beside its output: a residual, or a bias that is not added yet.
        partial: a sum's part on each rank, which whoever called it adds up.
    """

    pair: bool
    partial: bool


def outputs_of(module: nn.Module, width: int) -> Outputs:
    """Run a projection, a norm or an FFN on a token of ``width`` zeros, and follow what is a rank's part of a sum.

    Such a part stands as NaN, and what ranks have added up as zeros: NaN comes out where nobody has added them up.
    """
    if isinstance(module, LinearBase):
        return Outputs(pair=module.return_bias, partial=False)
    token = next(module.parameters(), torch.empty(())).new_zeros(1, width)
    with ExitStack() as stack, torch.compiler.set_stance("force_eager"):
        stack.enter_context(_replaced(get_tp_group(), "all_reduce", torch.zeros_like))
        for part in module.modules():
            if isinstance(part, LinearBase):
                stack.enter_context(_replaced(part, "quant_method", _Product()))
            elif isinstance(part, MoERunner):
                stack.enter_context(_replaced(part, "forward", _experts(part)))
        returned = module(token)
    pair = isinstance(returned, tuple)
    output = returned[0] if pair else returned
    return Outputs(pair, partial=bool(output.isnan().any()))


class _Product:
    """Stands for how a projection multiplies."""

    def apply(self, layer: Any, values: torch.Tensor, _: Any = None) -> torch.Tensor:
        """Return ``[tokens, width]``: NaN where it is a part of a sum, or was made of one."""
        part = isinstance(layer, RowParallelLinear) and layer.tp_size > 1
        return _filled(values, len(layer.weight), part=part)


def _experts(runner: Any) -> Callable[..., torch.Tensor]:
    """Stand for experts, which add up what their ranks have unless they are told not to."""

    def forward(values: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return _filled(values, values.shape[-1], part=runner.moe_config.skip_final_all_reduce)

    return forward


def _filled(values: torch.Tensor, width: int, *, part: bool) -> torch.Tensor:
    return (values[..., :1] * (torch.nan if part else 0)).repeat(*[1] * (values.dim() - 1), width)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an object have another attribute of its own for a while."""
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
