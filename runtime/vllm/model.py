"""The class that serves a folded checkpoint: vLLM's own for the source, with look-ups in place of what was folded."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial, wraps
from glob import glob
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.utils import PPMissingLayer

from prefold.runtime.storage_prefold import TableError
from prefold.runtime.vllm.layout import Layout, NotExpressibleError, plan
from prefold.runtime.vllm.modules import CountedRow, FoldedEmbedding, Passed, Reader, Zeros
from prefold.runtime.vllm.outputs import outputs_of
from prefold.runtime.vllm.quantized import spared
from prefold.runtime.vllm.refusals import folded_modules
from prefold.runtime.vllm.residual import settle_residual
from prefold.runtime.vllm.table import Table

Weights = Iterable[tuple[str, torch.Tensor]]


@cache
def derive(model_class: type[nn.Module]) -> type[nn.Module]:
    """Return the class that serves what was folded of a source which ``model_class`` serves."""
    return with_members(
        model_class,
        __init__=_init_of(model_class),
        forward=_pass_of(model_class),
        load_weights=_loader_of(model_class),
    )


def with_members(model_class: type[nn.Module], **members: Any) -> type[nn.Module]:
    """Return a class of vLLM's under its own name, with other members."""
    own = {"__module__": __name__, "__doc__": model_class.__doc__}
    return type(model_class.__name__, (model_class,), own | members)


def _init_of(model_class: Any) -> Callable[..., None]:
    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: N807
        config = vllm_config.model_config.hf_config
        packed = getattr(model_class, "packed_modules_mapping", {})
        with spared(vllm_config.quant_config, folded_modules(config.prefold), packed):
            model_class.__init__(self, vllm_config=vllm_config, prefix=prefix)
        (self.prefold,) = config.prefold["folds"]
        drafting = vllm_config.speculative_config
        self.prefold_is_lent = drafting is not None and drafting.use_eagle()
        self.prefold_files = partial(_files, vllm_config)
        self.prefold_is_loaded = False
        self.prefold_embedding, self.prefold_row = None, CountedRow(0)  # of later stages of a pipeline
        if get_pp_group().is_first_rank:
            with torch.device("cpu"):
                layout = plan(self, partial(model_class.load_weights, self), self.prefold)
            self.prefold_embedding, self.prefold_row = layout.embedding, _swap(self, layout, config)

    return __init__


def _pass_of(model_class: Any) -> Callable[..., Any]:
    @wraps(model_class.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        require_loaded(self)
        with self.prefold_row.awaited():
            return model_class.forward(self, *args, **kwargs)

    return forward


def require_loaded(model: Any) -> None:
    """Refuse a folded model whose weights came by a way that its ``load_weights`` knows nothing of.

    Raises:
        TableError: it is one.
    """
    if not getattr(model, "prefold_is_loaded", True):
        raise TableError("no table was loaded: this load_format of vLLM hands a model no weights by their names")


def _files(vllm_config: Any) -> list[str]:
    """Return the checkpoint's files that may have the table; vLLM has fetched them by then."""
    model = vllm_config.model_config
    folder = model.model
    if not os.path.isdir(folder):
        cache_folder = vllm_config.load_config.download_dir
        folder = snapshot_download(folder, revision=model.revision, cache_dir=cache_folder, local_files_only=True)
    return sorted(glob(f"{folder}/*.safetensors"))


def _swap(model: nn.Module, layout: Layout, config: Any) -> CountedRow:
    """Let look-ups stand for what was folded; returns the row that they share."""
    row = CountedRow(len(layout.readers))
    for name, (begin, end) in layout.readers.items():
        module = model.get_submodule(name)
        returned = outputs_of(module, _width(module, config.hidden_size))
        silent = returned.partial and get_tensor_model_parallel_rank() > 0
        _put(model, name, Reader(module, row, begin, end, silent=silent, pair=returned.pair))
    for name in layout.passed:
        norm = model.get_submodule(name)
        _put(model, name, Passed(pair=outputs_of(norm, _width(norm, config.hidden_size)).pair))
    for name in layout.zeros:
        _put(model, name, Zeros(pair=outputs_of(model.get_submodule(name), config.hidden_size).pair))
    entry = config.prefold["folds"][0]["table"]
    table = Table(
        entry, layout.values.to("cpu"), config.prefold_placement, config.prefold["tensor_sha256"][entry["tensor"]]
    )
    embedding = _look_up_in(model, layout)
    embedding.prefold, embedding.row, embedding.residual = table, row, layout.residual
    embedding.is_plain = layout.residual is not None and not layout.zeros
    return row


def _width(module: nn.Module, hidden_size: int) -> int:
    """Return how many values a module takes; a norm of heads, or of a latent, takes as many as it has weights."""
    weight = next(module.parameters(recurse=False), None)
    return hidden_size if weight is None or weight.dim() > 1 else len(weight)


def _put(model: nn.Module, name: str, stand_in: nn.Module) -> None:
    """Put a stand-in in a module's place, under all names: what runs latent attention holds the parts of its block."""
    module = model.get_submodule(name)
    for each in [each for each, part in model.named_modules(remove_duplicate=False) if part is module]:
        model.set_submodule(each, stand_in)


def _look_up_in(model: nn.Module, layout: Layout) -> Any:
    """Let the embedding be a look-up, and return it; where it is the model's head as well, it stays that."""
    embedding: Any = model.get_submodule(layout.embedding)
    if _has_head(model):
        embedding = FoldedEmbedding(embedding.embedding_dim)
        model.set_submodule(layout.embedding, embedding)
    else:
        own = type(embedding)
        embedding.__class__ = type(f"Folded{own.__name__}", (FoldedEmbedding, own), {"__module__": __name__})
    return embedding


def _has_head(model: nn.Module) -> bool:
    """Say whether the head is a module of its own, on this rank or on another; else the embedding is it."""
    here = any(isinstance(part, ParallelLMHead) for part in model.modules())
    return here or any(isinstance(part, PPMissingLayer) for part in model.children())


def _loader_of(model_class: Any) -> Callable[..., Any]:
    def load_weights(self: Any, weights: Weights) -> Any:
        ours = set[str]()
        loaded = model_class.load_weights(self, _without_ours(self, weights, ours))
        if self.prefold_embedding is not None:
            ours.add(_load_table(self))
        self.prefold_is_loaded = True
        return None if loaded is None else loaded | ours

    return load_weights


def _load_table(model: Any) -> str:
    """Look that the table is there, or where it lies; returns its parameter's name."""
    table = model.get_submodule(model.prefold_embedding).prefold
    if table.placement != "device" and not table.is_filled:
        table.place(model.prefold_files())
    if not table.is_filled:
        raise TableError(f"{table.entry['tensor']}: no file of the checkpoint has this table")
    settle_residual(model, model.prefold_embedding, model.prefold)
    if model.prefold_is_lent and not model.get_submodule(model.prefold_embedding).is_plain:
        raise NotExpressibleError("a draft that may take its target's embedding: the table has it scaled, or in a sum")
    return f"{model.prefold_embedding}.prefold.weight"


def _without_ours(model: Any, weights: Weights, loaded: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Load the table, and a head that the source ties to its embedding; leave all else to vLLM's class."""
    tensor, heads = model.prefold["table"]["tensor"], _tied_heads(model)
    for name, weight in weights:
        if name == tensor:
            _fill_table(model, weight)
        elif name in heads:
            loaded |= _load_head(model, weight)
        else:
            yield name, weight


def _fill_table(model: Any, weight: torch.Tensor) -> None:
    if model.prefold_embedding is not None:
        table = model.get_submodule(model.prefold_embedding).prefold
        if table.placement == "device":
            table.fill(weight)


def _load_head(model: nn.Module, weight: torch.Tensor) -> set[str]:
    """Load what the head is on this rank; vLLM's classes know of tied heads alone where all of their sources tie."""
    loaded = set[str]()
    for name, part in model.named_modules():
        if isinstance(part, ParallelLMHead if _has_head(model) else VocabParallelEmbedding):
            part.weight_loader(part.weight, weight)
            loaded.add(f"{name}.weight")
    return loaded


def _tied_heads(model: Any) -> Any:
    """Return the names of the weights that the source's class ties to its embedding."""
    source = getattr(transformers, model.config.architectures[0], None)
    return getattr(source, "_tied_weights_keys", None) or ()
