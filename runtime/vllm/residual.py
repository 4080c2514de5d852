"""What vLLM's class does to an embedding after it was looked up, and whether the rows have that already."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from prefold.runtime.vllm.layout import NotExpressibleError

_PROBED = 64


@torch.no_grad()
def settle_residual(model: Any, name: str, fold: dict[str, Any]) -> None:
    """Let the first layer see the residual as the source's does: scaled once.

    Where a source scales the embedding in the embedding itself, the rows are scaled, and vLLM's class must not do it
    again.

    Raises:
        NotExpressibleError: vLLM's class does more than scale, and so does the source's embedding.
    """
    embedding, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    if embedding.residual is None or not hasattr(parent, "embed_input_ids"):
        return
    ids = torch.arange(min(fold["table"]["rows"], _PROBED), device=next(model.parameters()).device)
    with embedding.row.awaited():
        looked_up, seen = embedding(ids), parent.embed_input_ids(ids)
    embedding.row.clear()
    if torch.equal(looked_up, seen) or _is_plain(model.config, fold["table"]["module"]):
        return
    if not _is_scaled(looked_up.double(), seen.double()):
        raise NotExpressibleError(f"{name}: {type(parent).__name__} changes what it looks up, and so did the source")
    parent.embed_input_ids, embedding.is_plain = embedding.forward, False


def _is_plain(config: Any, module: str) -> bool:
    """Say whether the source's embedding returns its rows as they are."""
    with torch.device("meta"):
        source = AutoModelForCausalLM.from_config(config)
    return type(source.get_submodule(module)).forward is nn.Embedding.forward


def _is_scaled(before: torch.Tensor, after: torch.Tensor) -> bool:
    largest = before.abs().argmax()
    return torch.allclose(before * (after.view(-1)[largest] / before.view(-1)[largest]), after, rtol=1e-2)
