"""The first module at which two models part."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert.experiment import first_tensor
from prefold.convert.model import hooks
from prefold.verify.probe.job import WIDE

# Beyond this part of a module's output two sketches of it are of different tensors: rounding of the type, with room for
# what a first layer makes of it.
_ROUNDING, _ROUNDING_16 = 1e-4, 2**-5

Sketch = tuple[str, float, float]


@torch.no_grad()
def sketches(model: PreTrainedModel, inputs: dict[str, Any]) -> list[Sketch]:
    """Run a pass; returns each module's name, a projection of its first output and its size, in order of return."""
    seen = dict[str, Sketch]()

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found = first_tensor(output)
            if name not in seen and found is not None and found.is_floating_point() and found.numel():
                values = found.double().flatten()
                weights = torch.arange(1, 1 + len(values), dtype=torch.float64).sin()
                seen[name] = (name, float(values @ weights), float(values.abs().sum()))

        return hook

    with hooks(model, {}, {name: keep(name) for name, _ in model.named_modules() if name}):
        model(**inputs)
    return list(seen.values())


def first_apart(source: list[Sketch], folded: list[Sketch], stored: list[str], dtype: str) -> str | None:
    """Name the first module, but a ``stored`` one, whose output is off by more than rounding; None if there is none."""
    tolerance = _ROUNDING if dtype in WIDE else _ROUNDING_16
    expected = {name: (value, size) for name, value, size in source}
    inside = tuple(f"{module}." for module in stored)
    for name, value, _ in folded:
        if name in expected and not f"{name}.".startswith(inside):
            known, size = expected[name]
            if not abs(value - known) <= tolerance * size:
                return name
    return None
