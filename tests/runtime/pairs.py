"""A source and its folded checkpoint, loaded side by side."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prefold.convert import FoldOptions, convert_checkpoint
from tests.conftest import load, random_model, small_config, tokens

PAD = 0
_AS_ALWAYS = FoldOptions()


@dataclass(frozen=True)
class Pair:
    """Folders and models of both."""

    source_folder: Path
    folded_folder: Path
    source: PreTrainedModel
    folded: PreTrainedModel


def make_folded(
    folder: Path,
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    options: FoldOptions = _AS_ALWAYS,
    **changes: Any,
) -> Path:
    """Save a small random model in ``folder`` and fold it; returns the folded checkpoint."""
    random_model(small_config(model_type, **changes), dtype).save_pretrained(folder / "source")
    return convert_checkpoint(str(folder / "source"), folder / "folded", options=options).out


def make_pair(
    folder: Path,
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    *,
    merge_residual: bool = False,
    **changes: Any,
) -> Pair:
    """Save a small random model in ``folder``, fold it, and load both."""
    folded = make_folded(folder, model_type, dtype, options=FoldOptions(merge_residual=merge_residual), **changes)
    return Pair(folder / "source", folded, load(folder / "source"), load(folded))


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of three prompts of different lengths and its attention mask, both ``[3, 12]``."""
    ids = tokens(3)
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :1] = 0
    return ids.masked_fill(mask == 0, PAD), mask


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return logits at every position that is not padding, ``[positions, vocabulary]``."""
    mask = torch.ones_like(ids) if mask is None else mask
    return model(input_ids=ids, attention_mask=mask).logits[mask == 1]


def rounding_error(model: nn.Module, truth: torch.Tensor, ids: torch.Tensor) -> float:
    """Return how far a model's logits are from those of exact arithmetic, as a root mean square."""
    return float((logits(model, ids).double() - truth).square().mean().sqrt())


def exact_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model's weights in float64, where rounding does not count."""
    return logits(copy.deepcopy(model).double(), ids)


def cached_steps(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue greedily by six cached steps; returns all tokens, and the steps' logits, ``[batch, 6, vocabulary]``."""
    made = generate(
        model, ids, mask, max_new_tokens=6, min_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    return made.sequences, torch.stack(made.logits, 1)


@torch.no_grad()
def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> Any:
    """Generate from the same seed every time, greedily unless ``options`` say otherwise.

    Tokens that were said are made unlikely: random weights repeat one token for ever, and that proves little.
    """
    torch.manual_seed(0)
    mask = torch.ones_like(ids) if mask is None else mask
    defaults = {
        "max_new_tokens": 12,
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": PAD,
        "repetition_penalty": 3.0,
    }
    return model.generate(ids, attention_mask=mask, **(defaults | options))


class Interruption(Exception):
    """What a test raises inside a forward pass."""


@contextmanager
def interrupted(module: nn.Module) -> Iterator[None]:
    """Let the pass end where it enters ``module``."""

    def stop(*_: Any) -> None:
        raise Interruption

    handle = module.register_forward_pre_hook(stop)
    yield
    handle.remove()
