"""A model's first block without its weights: what experiments run on.

The whole model is built on the meta device, where it costs nothing; then all blocks but the first of each
kind are cut away, and what is left is given memory. Pages that nobody touches are never allocated, so only
the first block and a few rows of the embedding cost anything.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Repeating a random sequence fills memory at the speed of a copy; its length is a prime, so that the rows of
# a weight, whose lengths are not, all differ.
_FILL_LENGTH = 1_000_003


@dataclass(frozen=True)
class Stack:
    """The stack of blocks that runs first.

    Attributes:
        name: the module list's name in the model.
        kinds: for every block of the model, the index of the first block with the same parameters.
    """

    name: str
    kinds: list[int]

    @property
    def first_block(self) -> str:
        """The name of the first block."""
        return f"{self.name}.0"


def _outermost_lists(model: nn.Module, length: int) -> list[str]:
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == length and not inside:
            found.append(name)
    return found


def _signature(block: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, parameter.shape) for name, parameter in block.named_parameters())


def find_stack(model: nn.Module, config: PreTrainedConfig) -> Stack | None:
    """Find the outermost module list that is as long as the model has layers; None where there is none."""
    names = _outermost_lists(model, config.get_text_config().num_hidden_layers)
    if not names:
        return None
    signatures = [_signature(block) for block in model.get_submodule(names[0]).children()]
    return Stack(names[0], [signatures.index(signature) for signature in signatures])


def build_on_meta(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build the whole model on the meta device, in ``dtype``."""
    with torch.device("meta"):
        model: PreTrainedModel = model_class._from_config(copy.deepcopy(config), dtype=dtype)
    model.eval()
    return model


def prune(model: nn.Module, stack: Stack, keep: list[int]) -> None:
    """Leave only the blocks whose indices are in ``keep``."""
    blocks = list(model.get_submodule(stack.name).children())
    model.set_submodule(stack.name, nn.ModuleList(blocks[index] for index in keep))


def materialize(model: PreTrainedModel, stack: Stack, embedding_rows: int) -> None:
    """Give the model memory, its buffers their own values, and its weights up to the first block's end random ones.

    Of an embedding only the first ``embedding_rows`` rows are filled.
    """
    model.to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers then sets the buffers alone
    model.initialize_weights()
    blocks, first = f"{stack.name}.", f"{stack.first_block}."
    head = model.get_output_embeddings()
    sample = torch.randn(_FILL_LENGTH, generator=torch.Generator().manual_seed(0))
    for name, module in model.named_modules():
        if module is head or (name.startswith(blocks) and not f"{name}.".startswith(first)):
            continue
        for parameter in module.parameters(recurse=False):
            _fill(parameter.data[:embedding_rows] if isinstance(module, nn.Embedding) else parameter.data, sample)
            sample = sample.roll(7919)


def _fill(weights: torch.Tensor, sample: torch.Tensor) -> None:
    """Fill in place: a matrix so that it keeps its input's scale, a vector (gain, bias) around one."""
    flat = weights.view(-1)
    scaled = sample * weights.shape[-1] ** -0.5 if weights.dim() > 1 else 1 + sample / 10
    for start in range(0, flat.numel(), _FILL_LENGTH):
        piece = flat[start : start + _FILL_LENGTH]
        piece.copy_(scaled[: piece.numel()])
