"""The source's embedding and first blocks with their real weights, and nothing else of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.utils import logging as loading_logging

from prefold.common.errors import UsageError
from prefold.convert.checkpoint.source import Source
from prefold.convert.errors import BrokenCheckpoint, ModelFailed, model_code
from prefold.convert.fold.unreached import leave_out
from prefold.convert.model.pruning import prune, remove
from prefold.convert.model.skeleton import Stack


def require_device(device: str) -> None:
    """Require a device of that name.

    Raises:
        UsageError: there is none.
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
    """Derive a class that is the source's up to its first blocks, under the same name and module.

    Name and module decide which renames of tensors transformers applies when it loads.
    """

    def __init__(self: Any, config: PreTrainedConfig) -> None:  # noqa: N807
        model_class.__init__(self, config)
        for stack in stacks:
            prune(self, stack, [0])
        leave_out(self, unreached)
        if not getattr(config, "tie_word_embeddings", False):
            remove(self, self.get_output_embeddings())
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
