"""The first layer with its weights, and the limits of folding a quantized one.

It is loaded as transformers loads the whole source on the same machine: dequantized where transformers does that on a
CPU, with quantized modules where it has some that run. A table holds what those modules return, so that no method of
quantization has to be known here by name.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.quantizers.auto import get_hf_quantizer
from transformers.utils import logging as loading_logging

from prefold.common.errors import UsageError
from prefold.convert.checkpoint.source import Source
from prefold.convert.errors import BrokenCheckpoint, ModelFailed, UnsupportedModel, model_code
from prefold.convert.experiment.tokens import ROW_TOLERANCE
from prefold.convert.fold.check import leave_out
from prefold.convert.fold.layout import Cut
from prefold.convert.fold.table import compute_rows
from prefold.convert.model.skeleton import Stack, prune, remove


def require_device(device: str) -> None:
    """Require a device that this machine has.

    Raises:
        UsageError: it has none of that name.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {device}: this machine has none that torch can use") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from reporting every tensor that a part of a model does not need."""
    verbosity, bars = transformers_logging.get_verbosity(), loading_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_layer_class(
    model_class: type[PreTrainedModel], stacks: list[Stack], unreached: list[str]
) -> type[PreTrainedModel]:
    """Derive the source's class up to its first blocks; its name and module keep transformers' renames of tensors."""

    def __init__(self: Any, config: PreTrainedConfig) -> None:  # noqa: N807
        model_class.__init__(self, config)
        for stack in stacks:
            prune(self, stack, [0])
        leave_out(self, unreached)
        head = self.get_output_embeddings()
        if not getattr(config, "tie_word_embeddings", False) and not isinstance(head, nn.Embedding):
            remove(self, head)
        self.post_init()

    return type(model_class.__name__, (model_class,), {"__init__": __init__, "__module__": model_class.__module__})


def load_first_layer(
    source: Source,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    stacks: list[Stack],
    unreached: list[str],
    *,
    dtype: torch.dtype,
    device: str = "cpu",
) -> PreTrainedModel:
    """Load the embeddings and the first block of every stack as transformers would, in ``dtype``.

    Modules that are ``unreached`` are left out, and none of their weights is loaded.

    Raises:
        BrokenCheckpoint: a weight is missing or has the wrong shape.
    """
    with quiet_loading():
        try:
            with model_code():
                loaded: Any = _first_layer_class(model_class, stacks, unreached).from_pretrained(
                    source.folder, config=config, dtype=dtype, output_loading_info=True, use_safetensors=True
                )
        except ModelFailed as failure:
            raise BrokenCheckpoint(f"the first layer does not load: {failure}") from failure
    model, info = loaded
    for name in sorted(info["missing_keys"]):
        raise BrokenCheckpoint(f"{name}: not in the checkpoint")
    for name, *shapes in sorted(info["mismatched_keys"]):
        raise BrokenCheckpoint(f"{name}: has shape {list(shapes[0])} where the config says {list(shapes[1])}")
    # Quantized modules may refuse to be moved, even to where they are.
    placed: PreTrainedModel = model if model.device.type == torch.device(device).type else model.to(device)
    return placed


# A scale that is shared rounds a third of the values and more otherwise (seen with two libraries); a product whose
# rows are summed in another order, 3e-4 of them.
_UNEQUAL = 0.01
_TOGETHER, _ALONE = 4096, 32


def method_of(config: PreTrainedConfig) -> str | None:
    """Name the method by which a source is quantized; None where it is not."""
    quantization: Any = getattr(config, "quantization_config", None)
    if not quantization:
        return None
    return (
        str(quantization.get("quant_method") or "unnamed")
        if isinstance(quantization, dict)
        else str(quantization.quant_method)
    )


def require_loadable(config: PreTrainedConfig) -> None:
    """Require that transformers can load a quantized source on this machine; any other source passes.

    Raises:
        UnsupportedModel: the method is unknown, or needs a library or a device that is not here.
    """
    method = method_of(config)
    if method is None:
        return
    try:
        with model_code():
            quantizer, _, _ = get_hf_quantizer(copy.deepcopy(config), None, None, True, {})
    except ModelFailed as failure:
        raise UnsupportedModel(
            [f"its weights are quantized ({method}), and cannot be loaded here: {failure}"]
        ) from failure
    if quantizer is None:
        raise UnsupportedModel([f"its weights are quantized ({method}), which transformers does not know"])


def require_plain(config: PreTrainedConfig, cuts: list[Cut], asked: list[str]) -> None:
    """Refuse, for a quantized source, a fold or options that change its weights; any other source passes.

    ``asked`` names options that change weights.

    Raises:
        UsageError: an option would change weights.
        UnsupportedModel: a column is a part of a sum.
    """
    method = method_of(config)
    if method is None:
        return
    if asked:
        raise UsageError(f"{' and '.join(asked)}: not for weights that are quantized ({method})")
    reasons = [
        f"its weights are quantized ({method}), and {cut.sum.columns[0].module} sees a sum of look-ups: the parts of"
        " that are computed in float64, which such weights do not allow"
        for cut in cuts
        if cut.sum
    ]
    if reasons:
        raise UnsupportedModel(reasons)


def require_token_pure(model: PreTrainedModel, cut: Cut) -> None:
    """Require of a quantized first layer that a row does not depend on which tokens are computed with it.

    A quantized module may round its input by a scale that all tokens of a pass share, or treat a feature otherwise
    where any token has a large value; the experiment that found the cut ran modules that are not quantized.

    Raises:
        UnsupportedModel: the rows differ.
    """
    ids = torch.linspace(0, cut.rows - 1, min(_TOGETHER, cut.rows), device=model.device).long()
    step = -(-len(ids) // _ALONE)
    together = compute_rows(model, cut, ids[None])[0, ::step]
    alone = torch.cat([compute_rows(model, cut, cut.texts(token[None]))[:, 0] for token in ids[::step]])
    for column in cut.stored:
        part = slice(column.start, column.start + column.width)
        if _share_of_unequal(alone[:, part].double(), together[:, part].double()) > _UNEQUAL:
            raise UnsupportedModel(
                [f"{column.module}: quantized, what it says of a token depends on the tokens that are run with it"]
            )


def _share_of_unequal(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).abs() > ROW_TOLERANCE * one.abs().max()).double().mean())
