"""Perplexity per token of a model and of a unigram model over the same held-out tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXForCausalLM

__all__ = ["Score", "score_blocks"]


@dataclass(frozen=True)
class Score:
    """Perplexities of the model and of the unigram model, over the same number of tokens."""

    tokens: int
    model: float
    unigram: float


def unigram_losses(train: Tensor, vocab: int) -> Tensor:
    """Return the loss in nats of every token under add-one smoothed counts, shape [vocab]."""
    counts = torch.bincount(train, minlength=vocab).double() + 1
    return -(counts / counts.sum()).log()


@torch.inference_mode()
def block_loss(model: GPTNeoXForCausalLM, block: Tensor) -> float:
    """Return the summed loss in nats of a block of shape [1 + tokens], its first token not counted."""
    total, context = 0.0, int(model.config.max_position_embeddings)
    for start in range(0, len(block) - 1, context):
        window = block[start : start + context + 1]
        logits = model(input_ids=window[None, :-1], use_cache=False).logits[0]
        total += cross_entropy(logits.float(), window[1:], reduction="sum").item()
    return total


def score_blocks(model: GPTNeoXForCausalLM, train: Tensor, blocks: list[Tensor]) -> Score:
    """Return the perplexities over blocks of shape [1 + tokens], the unigram counts from train."""
    tokens = sum(len(block) - 1 for block in blocks)
    losses = unigram_losses(train, int(model.config.vocab_size))
    unigram = sum(losses[block[1:]].sum().item() for block in blocks)
    network = sum(block_loss(model, block) for block in blocks)
    return Score(tokens, math.exp(network / tokens), math.exp(unigram / tokens))
