"""A decoding step's attention to a forest, in some layers, in every way that is timed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.forest import forest, path_tokens
from prefold.tree.cache.blocks import BLOCK, Blocks, make_blocks
from prefold.tree.cache.partial import Scoring

_MOST = 64  # layers
Run = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Work:
    """A forest, each leaf of which asks once, and the shape of a layer's attention: Llama 3 8B's."""

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def name(self) -> str:
        """Nodes and tokens of each level."""
        return " + ".join(f"{nodes:,} x {tokens:,}" for nodes, tokens in zip(self.nodes, self.tokens, strict=True))

    @property
    def queries(self) -> int:
        """Leaves."""
        return self.nodes[-1]

    @property
    def stored(self) -> int:
        """Tokens of the forest."""
        return sum(nodes * tokens for nodes, tokens in zip(self.nodes, self.tokens, strict=True))

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's keys and values, of two bytes each."""
        return 2 * 2 * self.kv_heads * self.head_dim

    @property
    def physical_bytes(self) -> int:
        """Bytes of keys and values that a step has to read."""
        return self.stored * self.token_bytes

    @property
    def expanded_bytes(self) -> int:
        """Bytes that it reads branch by branch."""
        return path_tokens([*self.nodes], [*self.tokens]) * self.token_bytes

    def layers(self, cache_bytes: int) -> int:
        """Return how many layers' pools are needed so that none is left in a processor's cache when its turn comes."""
        return min(_MOST, -(-4 * cache_bytes // self.physical_bytes))


class Layers:
    """Queries and pools of some layers, ``[layers, ...]``."""

    def __init__(self, work: Work, layers: int, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
        made = torch.Generator(device).manual_seed(0)
        new = partial(torch.randn, device=device, dtype=dtype, generator=made)
        self.work, self.count, self.device = work, layers, device
        self.query = new(layers, work.queries, work.heads, work.head_dim)
        self.keys, self.values = (new(layers, work.kv_heads, work.stored, work.head_dim) for _ in range(2))
        self.how = Scoring(work.head_dim**-0.5)

    def by_triton(self, size: int, stages: int = 2) -> Run:
        """Return the Triton kernels over blocks of so many tokens."""
        from prefold.tree.cache.triton_attention import attend_pools, make_launch

        launch = make_launch(self.work.head_dim, self.query.element_size(), stages=stages)
        blocks = self.blocks(size)

        def run(layer: int) -> torch.Tensor:
            pools = {0: (self.keys[layer], self.values[layer])}
            return attend_pools(self.query[layer], pools, blocks, self.how, launch=launch)[0]

        return run

    def blocks(self, size: int = BLOCK) -> Blocks:
        """Build what the kernels need to know of the tree, as every step does."""
        from prefold.tree.cache.triton_attention import query_tile

        work = self.work
        tile = query_tile(work.heads, work.kv_heads, work.head_dim, self.query.element_size())
        stretches = forest([*work.nodes], [*work.tokens])
        return make_blocks(stretches, work.queries, size=size, tile=tile, device=self.device)

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
        stretches = [each for each in forest([*self.work.nodes], [*self.work.tokens]) if each.tokens]
        paths = [
            [each.slot + at for each in stretches if each.low <= query < each.high for at in range(each.tokens)]
            for query in range(self.work.queries)
        ]
        return states[:, torch.tensor(paths, device=states.device)].transpose(0, 1).contiguous()
