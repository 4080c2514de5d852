"""A decoding step's attention in some layers, in every way that ``tree_gpu.py`` times."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from prefold.tree.blocks import BLOCK, Blocks, Stretch, make_blocks
from prefold.tree.flex_attention import flex_attention, tree_mask
from prefold.tree.partial import Scoring

PAGE = 16
_MOST = 64  # layers
Run = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """Branches of a prompt, each with so many tokens of its own, and the shape of a layer's attention."""

    prompt: int
    branches: int
    tokens: int = 200
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values, of two bytes each."""
        return 2 * 2 * self.kv_heads * self.head_dim

    @property
    def physical_bytes(self) -> int:
        """Bytes of keys and values that a step has to read."""
        return (self.prompt + self.branches * self.tokens) * self.token_bytes

    @property
    def expanded_bytes(self) -> int:
        """Bytes that it reads branch by branch."""
        return self.branches * (self.prompt + self.tokens) * self.token_bytes

    @property
    def pages(self) -> tuple[int, int]:
        """Pages of the prompt, and of each branch."""
        return -(-self.prompt // PAGE), -(-self.tokens // PAGE)

    @property
    def slots(self) -> int:
        """Of the pool: whole pages for the prompt and for each branch."""
        prompt, branch = self.pages
        return (prompt + branch * self.branches) * PAGE

    def stretches(self) -> list[Stretch]:
        """Return where the tokens lie, depth first."""
        prompt, branch = (pages * PAGE for pages in self.pages)
        own = [Stretch(prompt + row * branch, self.tokens, row, row + 1, self.prompt) for row in range(self.branches)]
        return [Stretch(0, self.prompt, 0, self.branches), *own]

    def layers(self, cache_bytes: int) -> int:
        """Return how many layers' pools are needed so that none is left in a processor's cache when its turn comes."""
        return min(_MOST, -(-4 * cache_bytes // self.physical_bytes))


class Layers:
    """Queries and pools of some layers, ``[layers, ...]``."""

    def __init__(self, work: Work, layers: int, device: str, dtype: torch.dtype = torch.float16) -> None:
        made = torch.Generator(device).manual_seed(0)
        new = partial(torch.randn, device=device, dtype=dtype, generator=made)
        self.work, self.count = work, layers
        self.query = new(layers, work.branches, work.heads, work.head_dim)
        self.keys, self.values = (new(layers, work.kv_heads, work.slots, work.head_dim) for _ in range(2))
        self.how = Scoring(work.head_dim**-0.5)
        self.device = device

    def by_triton(self, size: int, stages: int) -> Run:
        """Return the Triton kernels over blocks of so many tokens."""
        from prefold.tree.triton_attention import flatten_attention, make_launch

        work, width = self.work, self.query.element_size()
        launch = make_launch(work.head_dim, width, stages=stages)
        blocks = self.blocks(size)

        def run(layer: int) -> torch.Tensor:
            pool = self.keys[layer], self.values[layer]
            return flatten_attention(self.query[layer], *pool, blocks, self.how, launch=launch)[0]

        return run

    def blocks(self, size: int = BLOCK) -> Blocks:
        """Build what the kernels need to know of the tree, as every step does."""
        from prefold.tree.triton_attention import query_tile

        work = self.work
        tile = query_tile(work.heads, work.kv_heads, work.head_dim, self.query.element_size())
        return make_blocks(work.stretches(), work.branches, size=size, tile=tile, device=self.device)

    def by_flex(self, compiled: Callable[..., Any]) -> Run:
        """Return FlexAttention with a tree mask, made beforehand."""
        blocks = make_blocks(self.work.stretches(), self.work.branches, device=self.device)
        mask = tree_mask(blocks, self.work.slots)

        def run(layer: int) -> torch.Tensor:
            pool = self.keys[layer], self.values[layer]
            return flex_attention(self.query[layer], *pool, blocks, self.how, mask=mask, run=compiled)[0]

        return run

    def by_branch(self) -> Run:
        """Return torch's attention of each branch over a cache of its own, heads that share keys side by side."""
        keys, values = (self._expanded(states[0]) for states in (self.keys, self.values))
        work = self.work

        def run(layer: int) -> torch.Tensor:
            query = self.query[layer].unflatten(1, (work.kv_heads, -1))
            out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, scale=self.how.scale)
            return out.flatten(1, 2)

        return run

    def _expanded(self, states: torch.Tensor) -> torch.Tensor:
        """Return the pool of a layer as one cache for each branch, ``[branches, kv_heads, tokens, head_dim]``."""
        prompt, *own = self.work.stretches()
        shared = states[:, : prompt.tokens]
        return torch.stack([torch.cat([shared, states[:, each.slot : each.slot + each.tokens]], 1) for each in own])

    def by_flashinfer(self) -> Run:
        """Return FlashInfer's cascade of two levels, over a copy of the pools in its own layout."""
        from flashinfer import MultiLevelCascadeAttentionWrapper

        work, (prompt, branch) = self.work, self.work.pages
        numbers = partial(torch.tensor, dtype=torch.int32, device=self.device)
        wrapper = MultiLevelCascadeAttentionWrapper(2, torch.empty(1 << 27, dtype=torch.uint8, device=self.device))
        rows = range(work.branches + 1)
        wrapper.plan(
            [numbers([0, work.branches]), numbers([*rows])],
            [numbers([0, prompt]), numbers([row * branch for row in rows])],
            [numbers([*range(prompt)]), numbers([*range(prompt, prompt + branch * work.branches)])],
            [numbers([last_page(work.prompt)]), numbers([last_page(work.tokens)] * work.branches)],
            work.heads, work.kv_heads, work.head_dim, PAGE, q_data_type=str(self.query.dtype).partition(".")[2],
        )  # fmt: skip
        both = torch.stack([self.keys, self.values], 1).unflatten(3, (-1, PAGE))  # layers, 2, heads, pages, slots
        paged = both.permute(0, 3, 1, 4, 2, 5).contiguous()
        return lambda layer: wrapper.run(self.query[layer], paged[layer])


def last_page(tokens: int) -> int:
    """Return how many tokens the last page has."""
    return (tokens - 1) % PAGE + 1
