"""Log-likelihoods of many continuations of a prompt that is read once: multiple choice, judges, reranking."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prefold.tree.cache.passes import advance, batches, require_tree_attention
from prefold.tree.cache.tree_cache import TreeCache
from prefold.tree.errors import CacheError

_LOGITS = 1 << 26  # at a time


@dataclass(frozen=True)
class Scored:
    """A continuation's tokens, and the log-probability of each after all before it.

    ``is_greedy``: every token is the likeliest.
    """

    tokens: list[int]
    log_probs: list[float]
    is_greedy: bool

    @property
    def log_likelihood(self) -> float:
        """The sum of its tokens' log-probabilities."""
        return math.fsum(self.log_probs)


@torch.no_grad()
def score(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor | Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    max_pages: int | None = None,
) -> list[Scored]:
    """Return the log-likelihood of each continuation of a prompt, ``[tokens]`` or ``[1, tokens]``, in their order.

    The model is a causal language model with ``attn_implementation="prefold_tree"``. The prompt is read once, whatever
    the number of continuations; log-probabilities are those of the model's logits, in float32.

    Raises:
        CacheError: The prompt, or a continuation, has no token.
        WrongAttention: The model attends in another way.
    """
    require_tree_attention(model)
    prompt = torch.as_tensor(prompt_ids).reshape(-1).tolist()
    texts = [[int(token) for token in each] for each in continuations]
    if not prompt or not all(texts):
        raise CacheError("score: a prompt, and continuations, of at least one token each")
    cache = TreeCache(max_pages=max_pages)
    cache.takes_positions = True
    first = _Predicted(advance(model, cache, [prompt]))
    held, found = cache.hold(0), dict[int, Scored]()
    width = model.config.get_text_config(decoder=True).vocab_size
    for batch in batches([len(each) for each in texts], _LOGITS // width):
        rows = [texts[place] for place in batch]
        found |= zip(batch, _scored(model, cache, held, first, rows), strict=True)
    return [found[place] for place in range(len(texts))]


class _Predicted:
    """The log-probabilities that logits, ``[tokens, vocabulary]``, give to the tokens that follow."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._log_probs, self._best = logits.float().log_softmax(-1), logits.argmax(-1)

    def of(self, tokens: Sequence[int]) -> tuple[list[float], bool]:
        ids = torch.tensor(tokens, dtype=torch.long, device=self._best.device)
        return self._log_probs.gather(1, ids[:, None])[:, 0].tolist(), bool((self._best == ids).all())


def _scored(
    model: PreTrainedModel, cache: TreeCache, held: int, first: _Predicted, rows: Sequence[list[int]]
) -> list[Scored]:
    longest = len(rows[-1]) - 1
    if longest:
        cache.branch([held] * len(rows))
        logits = advance(model, cache, [row[:-1] for row in rows], every=True)
    scored = []
    for place, row in enumerate(rows):
        log_probs, greedy = first.of(row[:1])
        if len(row) > 1:
            more, also = _Predicted(logits[place, longest + 1 - len(row) :]).of(row[1:])
            log_probs, greedy = log_probs + more, greedy and also
        scored.append(Scored(row, log_probs, greedy))
    return scored
