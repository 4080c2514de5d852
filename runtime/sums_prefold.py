"""Columns behind a sum of look-ups, as of token and position (docs/how-it-works.md).

This file travels in every folded checkpoint beside ``modeling_prefold.py``, and needs torch alone.
"""

import copy
from typing import Any

import torch
from torch import nn

from .columns_prefold import Column, Folded, Row


def sum_modules(model: nn.Module, row: Row, entry: dict[str, Any], row_width: int) -> dict[str, nn.Module]:
    """Let look-ups and norms that stay give the row their shares and scales; returns stand-ins for the rest."""
    first, stand_ins = entry["columns"][0]["start"], dict[str, nn.Module]()
    for look_up in entry["look_ups"]:
        _look_up_beside(model.get_submodule(look_up["module"]), look_up, row, row_width - first)
    for norm in entry["norms"]:
        scale = NormScale(norm["module"], row, norm["eps"], centred=norm["centred"])
        if norm["module"] in entry["live"]:
            kept = model.get_submodule(norm["module"])
            kept.add_module("prefold", scale)
            kept.register_forward_pre_hook(_measure_scale)
        else:
            stand_ins[norm["module"]] = scale
    for column in entry["columns"]:
        name, last, steps = column["module"], column is entry["columns"][-1], max(len(entry["norms"]), 1)
        stand_ins[name] = SumColumn(row, column, steps=steps, first=first, last=last)
    return stand_ins


def _look_up_beside(module: nn.Module, look_up: dict[str, Any], row: Row, width: int) -> None:
    """Give a look-up a twin, with the same code and another weight, for its share of the columns."""
    twin: Any = copy.deepcopy(module)
    delattr(twin, look_up["weight"])
    twin.register_parameter(look_up["weight"], nn.Parameter(torch.empty(look_up["rows"], width), requires_grad=False))
    for name, held in [*twin.named_buffers(recurse=False)]:
        twin.register_buffer(name, held, persistent=False)  # they are in the checkpoint once
    twin.row = row
    module.add_module("prefold", twin)
    module.register_forward_hook(_look_beside, with_kwargs=True)


def _look_beside(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
    found = module.prefold(*args, **kwargs)
    module.prefold.row.add_others(found[0] if isinstance(found, tuple) else found)


def _measure_scale(module: Any, args: tuple[Any, ...]) -> None:
    module.prefold(args[0])


class SumColumn(Column):
    """Stands for a module that was linear in a sum of look-ups behind norms (docs/how-it-works.md)."""

    def __init__(self, row: Row, entry: dict[str, Any], *, steps: int, first: int, last: bool) -> None:
        """``first`` is where the columns of this kind begin in a row; ``steps`` counts the norms, or is 1."""
        super().__init__(entry["module"], row, entry["start"], entry["shape"], masked=entry["masked"], last=last)
        self.first, self.steps = first, steps
        del self.bias
        self.bias = nn.Parameter(torch.empty(steps + self.masked, self.stop - self.start), requires_grad=False)

    def slice(self) -> torch.Tensor:
        """Add the look-ups' parts up in float32 at least, and apply the norms' scales and biases in turn."""
        token, others = self.row.read(), self.row.others
        wide, device = torch.promote_types(token.dtype, torch.float32), self.bias.device
        total = token[..., self.start : self.stop].to(device, wide)
        if others is not None:
            total = total + others[..., self.start - self.first : self.stop - self.first].to(device)
        scales = [scale.to(device, wide) for scale in self.row.scales]
        for step, bias in enumerate(self.bias[: self.steps].to(wide)):
            total = torch.addcmul(bias, total, scales[step]) if scales else total + bias
        return total.to(token.dtype)

    def hidden(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of padded positions, ``[width]``: those of a zero sum."""
        return self.bias[-1].to(values.dtype)


class NormScale(Folded):
    """Measures the scale of a norm for the columns behind it, and stands for the norm where it has no other reader."""

    def __init__(self, name: str, row: Row, eps: float, *, centred: bool) -> None:
        super().__init__(name)
        self.row, self.eps, self.centred = row, eps, centred

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keep the scale of ``[batch, seq, width]``, and return it as it came."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        if self.centred:  # one operation, which also normalizes, is faster than those that only measure
            scale = torch.native_layer_norm(wide, wide.shape[-1:], None, None, self.eps)[2]
        else:
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        self.row.add_scale(scale)
        return hidden_states
