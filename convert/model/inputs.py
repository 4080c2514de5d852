"""The parts of a model that read tokens, each through a table of its own, and how to run them.

A decoder or an encoder alone is one side, the whole model; an encoder-decoder has two.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prefold.convert.errors import UnsupportedModel, model_code

_SOURCE_TOKENS = 3


@dataclass(frozen=True)
class Side:
    """A part of a model that turns token ids into hidden states.

    Attributes:
        name: of the module that does so; empty for the whole model.
        sees_source: it attends to an encoder's output, as the decoder of an encoder-decoder does.
    """

    name: str = ""
    sees_source: bool = False

    def inputs(self, model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
        """Return the arguments of the model's ``forward`` for ``[batch, seq]`` tokens to enter here; caches are off.

        The whole model is called, since it prepares arguments that the side needs. A decoder gets a made-up encoder
        output, so that the encoder does not run.
        """
        if self.sees_source:
            read = {"encoder_outputs": encoder_output(model, len(ids)), "use_cache": False}
            return accepted(model, {"decoder_input_ids": ids, "decoder_attention_mask": mask, **read})
        given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        return accepted(model, given | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))


def find_sides(model: PreTrainedModel) -> list[Side]:
    """Return the sides that take token ids, the encoder first."""
    if not model.config.is_encoder_decoder:
        return [Side()]
    with model_code():
        encoder, decoder = model.get_encoder(), model.get_decoder()
    sides = [Side(_name(model, decoder), sees_source=True)]
    return [Side(_name(model, encoder)), *sides] if model.main_input_name == "input_ids" else sides


def whole_inputs(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of the whole model's ``forward`` for ``[batch, seq]`` tokens, on every side."""
    return find_sides(model)[0].inputs(model, ids)


class _Encoded(BaseModelOutput):
    """An encoder's output without padding."""

    attention_mask = None


def encoder_output(model: PreTrainedModel, batch: int) -> BaseModelOutput:
    """Return a made-up encoder output, the same for all of a batch: ``[batch, 3, hidden_size]``."""
    encoder = getattr(model.get_encoder(), "config", model.config)
    size = (1, _SOURCE_TOKENS, encoder.get_text_config().hidden_size)
    made = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    return _Encoded(last_hidden_state=made.repeat(batch, 1, 1))


def accepted(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Drop arguments that a module's ``forward`` does not take."""
    parameters = inspect.signature(module.forward).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in given.items() if free or name in parameters}


def _name(model: nn.Module, wanted: nn.Module) -> str:
    names = [str(name) for name, module in model.named_modules() if module is wanted]
    if not names:
        raise UnsupportedModel(["its encoder or its decoder is none of its modules"])
    return names[0]
