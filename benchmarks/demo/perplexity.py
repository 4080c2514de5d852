"""Perplexity per token of a model and of a unigram model over the same held-out tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from prefold.demo.sample import block_loss

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


def score_blocks(model: GPTNeoXForCausalLM, train: Tensor, blocks: list[Tensor]) -> Score:
    """Return the perplexities over blocks of shape [1 + tokens], the unigram counts from train."""
    tokens = sum(len(block) - 1 for block in blocks)
    losses = unigram_losses(train, int(model.config.vocab_size))
    unigram = sum(losses[block[1:]].sum().item() for block in blocks)
    network = sum(block_loss(model, block) for block in blocks)
    return Score(tokens, math.exp(network / tokens), math.exp(unigram / tokens))
