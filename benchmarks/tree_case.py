"""What attention over a tree is measured on: two caches that hold the same, one of them once for all branches."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function

from prefold.tree import TreeCache
from prefold.tree.cache.attention import tree_attention
from prefold.tree.cache.masks import TreeMask
from prefold.tree.cache.step import Part

# Pythia-410M: every layer has 16 heads of 64 values.
HIDDEN, HEADS, WIDTH, LAYERS = 1024, 16, 64, 24
TOKEN_BYTES = 2 * HEADS * WIDTH * 4
_TAIL = 32
_VOCABULARY = 50304


def states(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Return random keys, values or queries, ``[rows, heads, tokens, width]``."""
    return torch.randn(rows, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


class Caches:
    """A tree of one prompt and its branches, and the same in a cache of transformers' own, expanded.

    Args:
        prompt: Tokens of the prompt.
        branches: Rows, each with some tokens of its own.
        layers: Layers of both.
        plain: Whether to make the expanded cache.
    """

    def __init__(self, prompt: int, branches: int, layers: int, *, plain: bool = True) -> None:
        self.branches, self.layers = branches, layers
        self.tree, self.plain = TreeCache(), DynamicCache()
        for layer in range(layers):
            update = self.tree.update(states(1, prompt, layer), states(1, prompt, layer + layers), layer)[0].update
            self.tree.store(update, None)
        self.tree.batch_repeat_interleave(branches)
        for layer in range(layers):
            tails = states(branches, _TAIL, layer), states(branches, _TAIL, layer + layers)
            self.tree.store(self.tree.update(*tails, layer)[0].update, None)
            if plain:
                for start in (states(1, prompt, layer), states(1, prompt, layer + layers)):
                    tails = (*tails, start.expand(branches, -1, -1, -1))
                self.plain.update(torch.cat([tails[2], tails[0]], 2), torch.cat([tails[3], tails[1]], 2), layer)

    def tree_step(self) -> float:
        """Return the seconds of one step of all layers' attention over the tree."""
        query, new, module = states(self.branches, 1), states(self.branches, 1), torch.nn.Module()
        mask = TreeMask(mask_function=causal_mask_function, attention_mask=None)
        start = time.perf_counter()
        for layer in range(self.layers):
            keys, values = self.tree.update(new, new, layer)
            tree_attention(module, query, keys, values, mask)
        return time.perf_counter() - start

    def plain_step(self) -> float:
        """Return the seconds of one step of all layers' attention as transformers' ``generate`` does it."""
        query, new, module = states(self.branches, 1), states(self.branches, 1), torch.nn.Module()
        start = time.perf_counter()
        for layer in range(self.layers):
            keys, values = self.plain.update(new, new, layer)
            sdpa_attention_forward(module, query, keys, values, None, scaling=WIDTH**-0.5)
        return time.perf_counter() - start

    def sequence_step(self) -> float:
        """Return the seconds of attention that reads every branch's whole path, from keys that lie ready."""
        query = states(self.branches, 1)
        start = time.perf_counter()
        for layer in self.plain.layers:
            torch.nn.functional.scaled_dot_product_attention(query, layer.keys, layer.values)
        return time.perf_counter() - start

    def plain_bytes(self) -> int:
        """Return the bytes that the expanded cache holds."""
        return sum(layer.keys.numel() * 8 for layer in self.plain.layers)

    def physical_bytes(self) -> int:
        """Return what the formulas say that one step reads: every live segment once, in every layer."""
        segments = {segment for leaf in self.tree.live.rows for segment in leaf.path()}
        return sum(segment.length for segment in segments) * TOKEN_BYTES * self.layers


class Flex:
    """FlexAttention over the flattened tree, compiled, with a mask that says whose token is whose."""

    def __init__(self, prompt: int, branches: int, layers: int) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        tokens = prompt + branches * _TAIL
        owner = torch.cat([torch.full((prompt,), -1), torch.arange(branches).repeat_interleave(_TAIL)])
        self._mask = create_block_mask(
            lambda _, __, row, token: (owner[token] < 0) | (owner[token] == row), None, None, branches, tokens, "cpu"
        )
        self._query = states(branches, 1).permute(2, 1, 0, 3).contiguous()
        self._keys, self._layers = states(1, tokens), layers
        self._attend = torch.compile(flex_attention)

    @torch.no_grad()
    def step(self) -> float:
        """Return the seconds of one step of all layers; keys and mask lie ready."""
        start = time.perf_counter()
        for _ in range(self._layers):
            self._attend(self._query, self._keys, self._keys, block_mask=self._mask)
        return time.perf_counter() - start


@contextmanager
def metadata_clock() -> Iterator[list[float]]:
    """Yield a list that gains the seconds of every making of a step's metadata."""
    begin, work, spent = TreeCache._begin, Part.work, list[float]()

    def timed(make: Callable[..., Any], finish: Callable[[Any], Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            made = make(*args)
            finish(made)
            spent.append(time.perf_counter() - start)
            return made

        return call

    TreeCache._begin = timed(begin, lambda _: None)  # type: ignore[method-assign]
    Part.work = timed(work, lambda made: (made.index, made.picks))  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        TreeCache._begin, Part.work = begin, work  # type: ignore[method-assign]


def model(layers: int) -> PreTrainedModel:
    """Build a model of that shape with random weights in float32."""
    config = AutoConfig.for_model(
        "gpt_neox",
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        vocab_size=_VOCABULARY,
        max_position_embeddings=1 << 14,
    )
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return made.eval()


def repeated(made: PreTrainedModel, ids: torch.Tensor, branches: int) -> DynamicCache:
    """Return transformers' own cache of a prompt, ``[1, tokens]``, without its last token: read once, then repeated."""
    cache = DynamicCache()
    made(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(branches)
    return cache


class Decoder:
    """A model that goes on from both caches, one token for every branch at a time."""

    def __init__(self, made: PreTrainedModel, caches: Caches) -> None:
        self._model, self._caches = made, caches
        self._token = torch.arange(caches.branches)[:, None]
        self.logits: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, kind: str) -> float:
        """Return the seconds of one greedy step from the ``tree`` or the ``plain`` cache."""
        self._model.set_attn_implementation("prefold_tree" if kind == "tree" else "sdpa")
        cache = self._caches.tree if kind == "tree" else self._caches.plain
        start = time.perf_counter()
        logits = self._model(self._token, past_key_values=cache, use_cache=True).logits[:, -1]
        logits.argmax(-1)
        seconds = time.perf_counter() - start
        self.logits[kind] = logits
        return seconds

    def difference(self) -> float:
        """Return how far the logits of both last steps are apart, relative to their scale."""
        one, other = self.logits["tree"], self.logits["plain"]
        return float((one - other).abs().max() / other.abs().max())
