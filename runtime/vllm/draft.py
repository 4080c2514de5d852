"""A draft in its target's own folded checkpoint, as of multi-token prediction: vLLM's own class without the table."""

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from prefold.runtime.vllm.layout import NotExpressibleError
from prefold.runtime.vllm.model import Weights, with_members


@cache
def derive_draft(model_class: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a draft: the engine gives it its target's embedding once both are loaded."""
    return with_members(model_class, __init__=_init_of(model_class), load_weights=_loader_of(model_class))


def _init_of(model_class: Any) -> Callable[..., None]:
    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:  # noqa: N807
        if get_pp_group().world_size > 1:
            raise NotExpressibleError("a draft in a folded checkpoint: stages of a pipeline lend it no embedding")
        model_class.__init__(self, vllm_config=vllm_config, prefix=prefix)
        (fold,) = vllm_config.model_config.hf_config.prefold["folds"]
        self.prefold_table = fold["table"]["tensor"]

    return __init__


def _loader_of(model_class: Any) -> Callable[..., Any]:
    def load_weights(self: Any, weights: Weights) -> Any:
        loaded = model_class.load_weights(self, (each for each in weights if each[0] != self.prefold_table))
        return None if loaded is None else loaded | _lent(self)

    return load_weights


def _lent(model: nn.Module) -> set[str]:
    """Return the weights of embeddings, which no file has."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, VocabParallelEmbedding)}
    return {f"{name}.weight" for name, part in parts.items() if not isinstance(part, ParallelLMHead)}
