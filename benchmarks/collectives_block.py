"""One block of a decoder as it is without chips: its weights, what it returns, and the table that folds it."""

import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks.collectives_task import Model

Weights = dict[str, Tensor]
# What is stored is half as wide as what is sent for activations, so that one is not taken for the other.
STORED, ACTIVE = torch.bfloat16, torch.float32


def random_weights(model: Model) -> Weights:
    """Return matrices and an embedding, the same ones in every process."""
    generator = torch.Generator().manual_seed(7)
    sizes = {**model.sizes(), "embedding": (model.vocabulary, model.hidden)}
    scaled = {name: torch.randn(size, generator=generator) * size[0] ** -0.5 for name, size in sizes.items()}
    return {name: weight.to(STORED) for name, weight in scaled.items()}


def random_tokens(model: Model) -> Tensor:
    """Return token ids, ``[batch, length]``."""
    generator = torch.Generator().manual_seed(11)
    return torch.randint(model.vocabulary, (model.batch, model.length), generator=generator)


def normed(hidden: Tensor) -> Tensor:
    """Divide by the root of the mean square; without weights, which every chip would have of its own."""
    return functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)


def activated(model: Model, inner: Weights) -> Tensor:
    """Return what goes into the FFN's last matrix."""
    up = functional.gelu(inner["up"], approximate="tanh")
    return up * inner["gate"] if model.gated else up


def attended(model: Model, inner: Weights) -> Tensor:
    """Return what goes into attention's last matrix, for the heads that are there: ``[batch, length, width]``."""
    split = {name: inner[name].unflatten(-1, (-1, model.head_dim)).transpose(1, 2) for name in inner}
    asked = split["queries"]
    keys, values = (each.expand(-1, asked.shape[1], -1, -1) for each in (split["keys"], split["values"]))
    return functional.scaled_dot_product_attention(asked, keys, values, is_causal=True).transpose(1, 2).flatten(2)


def block(model: Model, weights: Weights, hidden: Tensor) -> Tensor:
    """Return what the block returns, on one chip: ``[batch, length, hidden]``."""
    use = {name: weight.to(ACTIVE) for name, weight in weights.items()}
    entered = normed(hidden)
    mixed = attended(model, {name: entered @ use[name] for name in ("queries", "keys", "values")})
    after = hidden + mixed @ use["attention_out"]
    return after + ffn(model, use, entered if model.parallel else normed(after))


def ffn(model: Model, use: Weights, entered: Tensor) -> Tensor:
    """Return what the FFN adds."""
    return activated(model, {name: entered @ use[name] for name in model.ffn_in}) @ use["down"]


def columns(model: Model, weights: Weights) -> Weights:
    """Return the table that folds the block, by column: ``[vocabulary, width]`` each."""
    use = {name: weight.to(ACTIVE) for name, weight in weights.items()}
    entered = normed(use["embedding"])
    found = {name: entered @ use[name] for name in ("queries", "keys", "values")}
    extra = {"FFN": ffn(model, use, entered)} if model.parallel else {}
    return {"residual": use["embedding"], **found, **extra}
