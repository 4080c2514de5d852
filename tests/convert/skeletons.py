"""Skeletons to experiment on, as ``study_model`` builds them, and modules that are nearly linear."""

from typing import Any

import torch
from torch import float32, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.convert.errors import ModelFailed
from prefold.convert.experiment.entries import record_entries
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.model.skeleton import (
    CalledAlone,
    build_on_meta,
    call_with_hooks,
    find_stacks,
    materialize,
    prune,
)
from tests.conftest import auto_class


def skeleton(config: PreTrainedConfig, within: str = "", auto: Any = None) -> tuple[PreTrainedModel, str]:
    """Build a model with one block of each kind; returns it and the name of the first block of a side.

    ``auto`` is the auto class, where tests have no shape of the model's type.
    """
    model = build_on_meta((auto or auto_class(config.model_type))._model_mapping[type(config)], config, float32)
    stacks = find_stacks(model)
    for stack in stacks:
        prune(model, stack, stack.kept)
    materialize(model, 64)
    try:
        record_entries(model, experiment_tokens(config)[:1, :1])
    except CalledAlone:
        for stack in stacks:
            call_with_hooks(model, stack)
    except ModelFailed:
        pass  # a test asks for it as it is
    return model, next(stack.first_block for stack in stacks if stack.name.startswith(within))


class Bent(nn.Linear):
    """A projection that is a little less than linear."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made = super().forward(values)
        return made + 0.01 * made.square()


class Mixing(nn.Linear):
    """Linear, and sees its neighbour."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        made = super().forward(values)
        return made + 0.01 * made.roll(1, 1)
