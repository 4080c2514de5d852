"""Random flattened trees, attention to them that is too slow to be wrong, and a process in which Triton interprets."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from prefold.tree.cache.blocks import SlotRange, make_blocks

Found = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A tree, the shape of the attention to it, and how it is cut.

    ``spread`` is that of the scores. ``lying`` is the order in which heads, slots and values lie in memory. ``flip``
    is a bit of the masks that is wrong: the token's number, and the bit's; ``beyond`` a stretch that no pool has;
    ``blind``: queries do not say where they are.
    """

    stretches: tuple[SlotRange, ...]
    queries: int
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    width: int = 16
    dtype: str = "float32"
    softcap: float | None = None
    window: tuple[str, int] | None = None
    size: int = 128
    tile: int = 32
    spread: float = 1.0
    lying: tuple[int, int, int] = (0, 1, 2)
    flip: tuple[int, int] | None = None
    beyond: SlotRange | None = None
    blind: bool = False
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.spread * self.head_dim**-0.5

    def tensors(self) -> tuple[torch.Tensor, dict[int, tuple[torch.Tensor, torch.Tensor]]]:
        """Return queries and pools; slots that no segment has hold NaN, which shows if it is read."""
        made = torch.Generator().manual_seed(self.seed)
        kind = getattr(torch, self.dtype)
        query = torch.randn(self.heads, self.queries, self.head_dim, generator=made).to(kind).transpose(0, 1)
        pools = {}
        for name in {each.pool for each in self.stretches} or {0}:
            own = [each for each in self.stretches if each.pool == name]
            taken = torch.zeros(max((each.slot + each.tokens for each in own), default=0) + 3, dtype=torch.bool)
            for each in own:
                taken[each.slot : each.slot + each.tokens] = True
            pools[name] = tuple(self._pool(taken, width, made, kind) for width in (self.head_dim, self.width))
        return query, pools

    def _pool(self, taken: torch.Tensor, width: int, made: torch.Generator, kind: torch.dtype) -> torch.Tensor:
        shape = (self.kv_heads, len(taken), width)
        states = torch.randn(shape, generator=made).masked_fill(~taken[None, :, None], float("nan")).to(kind)
        back = [self.lying.index(dim) for dim in range(3)]
        return states.permute(self.lying).contiguous().permute(back)

    def ends(self) -> torch.Tensor:
        """Return the position of each query: that of the last token on its path."""
        found = [0] * self.queries
        for each in self.stretches:
            for query in range(each.low, each.high):
                found[query] = max(found[query], each.position + each.tokens - 1)
        return torch.tensor(found)


def naive(case: Case) -> Found:
    """Attend query by query to the tokens on its path, in float32, and the sums in float64."""
    query, pools = case.tensors()
    out = torch.zeros(case.queries, case.heads, case.width, dtype=torch.float64)
    total = torch.full((case.queries, case.heads), float("-inf"), dtype=torch.float64)
    for index, end in enumerate(case.ends().tolist()):
        path = [each for each in case.stretches if each.low <= index < each.high and each.tokens]
        seen = [(each.pool, each.slot + at) for each in path for at in range(each.tokens) if _sees(case, each, at, end)]
        if not seen:
            continue
        keys, values = (torch.stack([pools[pool][side][:, slot] for pool, slot in seen], 1).double() for side in (0, 1))
        each_key = torch.arange(case.heads) // (case.heads // case.kv_heads)
        scores = torch.einsum("hd,htd->ht", query[index].double(), keys[each_key]) * case.scale
        scores = scores if case.softcap is None else case.softcap * torch.tanh(scores / case.softcap)
        total[index] = scores.logsumexp(-1)
        out[index] = torch.einsum("ht,htd->hd", scores.softmax(-1), values[each_key])
    return out.numpy(), total.numpy()


def _sees(case: Case, stretch: SlotRange, at: int, end: int) -> bool:
    if case.window is None:
        return True
    kind, size = case.window
    first = end - size + 1 if kind == "sliding" else end // size * size
    return stretch.position + at >= first


def by_triton(case: Case) -> Found:
    """Attend by the kernels, on a GPU where there is one."""
    from prefold.tree.cache.masks import Window
    from prefold.tree.cache.partial import Scoring
    from prefold.tree.cache.triton_attention import attend_pools

    device = "cuda" if torch.cuda.is_available() else "cpu"
    query, pools = case.tensors()
    stretches = [*case.stretches, case.beyond] if case.beyond else case.stretches
    blocks = make_blocks(stretches, case.queries, size=case.size, tile=case.tile, device=device)
    if case.flip:
        blocks.masks[case.flip[0]] ^= 1 << case.flip[1]
    out, total = attend_pools(
        query.to(device),
        {name: (keys.to(device), values.to(device)) for name, (keys, values) in pools.items()},
        blocks,
        Scoring(case.scale, case.softcap),
        window=case.window and Window(*case.window),
        ends=case.ends().to(device) if case.window and not case.blind else None,
        dtype=torch.float32,
    )
    return out.cpu().numpy(), total.cpu().numpy()


def interprets() -> bool:
    """Return whether kernels are interpreted in this process."""
    from prefold.tree.cache import triton_attention

    return triton_attention._INTERPRETED


def interpret() -> None:
    """Let Triton interpret kernels in this process, where there is no GPU; it asks when kernels are defined."""
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Start a process of its own, so that no other test is run with interpreted kernels."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), interpret) as process:
        yield process


TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def assert_equal(found: Found, expected: Found, dtype: str = "float32") -> None:
    """Assert that attention is equal, but for the rounding of its weights."""
    assert np.array_equal(np.isneginf(found[1]), np.isneginf(expected[1]))
    np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCES[dtype])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5, rtol=1e-5)


@st.composite
def flattened(draw: Any, most: int = 40, segments: int = 10, pools: int = 1) -> Case:
    """Draw a tree: segments without tokens or queries, in several runs, anywhere in the pool."""
    count = draw(st.integers(1, segments))
    above = [-1, *(draw(st.integers(-1, index - 1)) for index in range(1, count))]
    sizes = [draw(st.integers(0, most) | st.just(0) | st.integers(most, 4 * most)) for _ in range(count)]
    rows = [draw(st.integers(0, 2)) for _ in range(count)]
    below = [[child for child in range(count) if above[child] == each] for each in range(count)]
    stretches: list[SlotRange] = []
    slots, queries = [0] * pools, 0

    def walk(segment: int, position: int) -> None:
        nonlocal queries
        index, low = len(stretches), queries
        runs = draw(st.integers(1, 2))
        queries += rows[segment]
        stretches.extend([SlotRange(0, 0, 0, 0)] * runs)
        for child in below[segment]:
            walk(child, position + sizes[segment])
        for run in range(runs):
            tokens = sizes[segment] // runs if run else sizes[segment] - sizes[segment] // runs * (runs - 1)
            pool = draw(st.integers(0, pools - 1))
            slots[pool] += draw(st.integers(0, 5))
            stretches[index + run] = SlotRange(slots[pool], tokens, low, queries, position, pool)
            slots[pool] += tokens
            position += tokens

    for root in (each for each in range(count) if above[each] < 0):
        walk(root, 0)
    return Case(tuple(stretches), queries)


def few_shot(prompt: int, branches: int, tokens: int, **changes: Any) -> Case:
    """Return branches of one prompt, each as long."""
    own = [SlotRange(prompt + 2 + index * tokens, tokens, index, index + 1, prompt) for index in range(branches)]
    return replace(Case((SlotRange(0, prompt, 0, branches), *own), branches), **changes)
