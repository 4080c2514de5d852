"""Attention over a tree: latency, bytes and memory, beside what reads every branch's whole path."""

import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tree_page
from course import course
from timing import compared, in_turn, seconds_of
from transformers.masking_utils import causal_mask_function
from tree_case import HEADS, LAYERS, TOKEN_BYTES, WIDTH, Caches, Decoder, Flex, metadata_clock, model, states

from prefold.tree import TreeCache, count_trees, open_trees
from prefold.tree.cache.attention import tree_attention
from prefold.tree.cache.masks import TreeMask
from prefold.tree.cache.partial import Scoring, _flash, attend_masked
from prefold.tree.count.reads import Attention

_DATA = Path(__file__).resolve().parent.parent / "tests" / "tree" / "data"
_PROMPT = 4000


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Return the figures of all cases."""
    return [{"name": name} | found for name in CASES for found in measure_case(name, quick=quick)]


def measure_case(name: str, *, quick: bool = False) -> list[dict[str, Any]]:
    """Return the figures of one case."""
    return CASES[name](quick)


def _attention(branches: int) -> Callable[[bool], list[dict[str, Any]]]:
    def case(quick: bool) -> list[dict[str, Any]]:
        prompt, layers = (400, 1) if quick else (_PROMPT, 4 if branches <= 16 else 2)
        caches = Caches(prompt, branches, layers)
        timed = {"tree": caches.tree_step, "expanded": caches.plain_step, "sequence": caches.sequence_step}
        flex = None if quick else _flex(prompt, branches, layers)
        found = in_turn(timed | ({"flex": flex.step} if flex else {}), 3 if quick else 7)
        _require_equal(caches)
        seconds = {name: median(each) / layers for name, each in found.items()}
        ratios = {name: compared(each, found["tree"])["ratio"] for name, each in found.items() if name != "tree"}
        return [{"case": "attention", "branches": branches, "prompt": prompt, "seconds": seconds, "ratios": ratios}]

    return case


def _flex(prompt: int, branches: int, layers: int) -> Flex | None:
    try:
        flex = Flex(prompt, branches, layers)
        flex.step()
    except Exception as error:  # what a compiler can say is without end
        os.write(2, f"FlexAttention does not run here: {type(error).__name__}\n".encode())
        return None
    return flex


def _require_equal(caches: Caches) -> None:
    if caches.tree.reads[-1] != caches.physical_bytes():
        raise RuntimeError(f"read {caches.tree.reads[-1]} bytes, the formula says {caches.physical_bytes()}")


def _decoding(branches: int) -> Callable[[bool], list[dict[str, Any]]]:
    def case(quick: bool) -> list[dict[str, Any]]:
        prompt = 400 if quick else _PROMPT
        layers = 2 if quick else min(LAYERS, _layers_that_fit(prompt, branches))
        caches = Caches(prompt, branches, layers)
        decoder = Decoder(model(layers), caches)
        with metadata_clock() as spent:
            steps = {kind: lambda kind=kind: decoder.step(kind) for kind in ("tree", "plain")}
            found = in_turn(steps, 3 if quick else 9 if branches < 16 else 5)
        _require_equal(caches)
        rounds, held = len(found["tree"]) + 1, caches.tree.memory()
        return [
            {
                "case": "decoding",
                "branches": branches,
                "prompt": prompt,
                "layers": layers,
                "tree": median(found["tree"]),
                "expanded": median(found["plain"]),
                **compared(found["plain"], found["tree"]),
                "metadata": sum(spent) / rounds / median(found["tree"]),
                "difference": decoder.difference(),
                "read": caches.tree.reads[-1],
                "physical": caches.physical_bytes(),
                "held": held.bytes,
                "held_expanded": caches.plain_bytes(),
                "sharing": caches.plain_bytes() / (held.tokens * TOKEN_BYTES * layers),
            }
        ]

    return case


def _layers_that_fit(prompt: int, branches: int) -> int:
    """Return for how many layers the expanded cache fits beside what else is there: it is the larger by far."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") - 4e9
    return max(1, int(free / (branches * (prompt + 64) * TOKEN_BYTES * 1.1)))


def _beams(quick: bool) -> list[dict[str, Any]]:
    """Time beam search as ``generate`` does it: both caches reordered after every step, by the same beams."""
    prompt, layers, steps = (200, 1, 4) if quick else (_PROMPT, 4, 24)
    caches = Caches(prompt, 8, layers)
    random, seconds = torch.Generator().manual_seed(0), {"tree": list[float](), "expanded": list[float]()}
    for _ in range(steps):
        chosen = torch.randint(8, (8,), generator=random).sort().values
        for name, cache, step in (
            ("tree", caches.tree, caches.tree_step),
            ("expanded", caches.plain, caches.plain_step),
        ):
            start = time.perf_counter()
            cache.reorder_cache(chosen)
            seconds[name].append(time.perf_counter() - start + step())
        _require_equal(caches)
    warm = {name: each[2:] for name, each in seconds.items()}
    medians = {name: median(each) / layers for name, each in warm.items()}
    ratio = compared(warm["expanded"], warm["tree"])["ratio"]
    return [{"case": "beams", "branches": 8, "prompt": prompt, "seconds": medians, "ratio": ratio}]


def _template(name: str, limit: int) -> Callable[[bool], list[dict[str, Any]]]:
    def case(quick: bool) -> list[dict[str, Any]]:
        tree = open_trees(str(_DATA / f"{name}.json"), limit=1).trees[0]
        cache, found, most = TreeCache(), list[tuple[float, float]](), 20 if quick else limit
        _grow(cache, 1, tree.prompt)
        for step, rows in enumerate(course(tree) if not quick else islice(course(tree), 40)):
            cache.reorder_cache(rows)
            seconds = _grow(cache, len(rows), 1)
            if step % max(1, tree.steps() // most) == 0 or quick:
                found.append((seconds, _path_wise(cache)))
        physical = (
            count_trees([tree], Attention(1, HEADS, HEADS, WIDTH, 4), schemes=["flatten"]).reads["flatten"].physical
        )
        if sum(cache.reads[1:]) != physical and not quick:
            raise RuntimeError(f"{name}: read {sum(cache.reads[1:])} bytes, the formula says {physical}")
        tree_seconds, path_seconds = (list(each) for each in zip(*found[1:], strict=True))
        return [
            {
                "case": "template",
                "template": name,
                "steps": tree.steps(),
                "read": sum(cache.reads[1:]),
                "tree": sum(tree_seconds) / len(tree_seconds),
                "sequence": sum(path_seconds) / len(path_seconds),
                "ratio": sum(path_seconds) / sum(tree_seconds),
            }
        ]

    return case


def _grow(cache: TreeCache, rows: int, new: int) -> float:
    """Return the seconds of one layer's attention for so many new tokens of every row."""
    query, made = states(rows, new), states(rows, new)
    padding = cache.attention_mask(new).bool() if cache.live.rows else None
    mask = TreeMask(mask_function=causal_mask_function, attention_mask=padding)
    start = time.perf_counter()
    keys, values = cache.update(made, made, 0)
    tree_attention(torch.nn.Module(), query, keys, values, mask)
    return time.perf_counter() - start


def _path_wise(cache: TreeCache) -> float:
    """Return the seconds of attention that reads every row's whole path, from tensors of its own that lie ready."""
    query = states(1, 1)
    ready = [(states(1, leaf.end, row), states(1, leaf.end, row + 1)) for row, leaf in enumerate(cache.live.rows)]
    start = time.perf_counter()
    for keys, values in ready:
        torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    return time.perf_counter() - start


def _kernels(quick: bool) -> list[dict[str, Any]]:
    """Time both ways of attending to one segment, of which ``prefold.tree.cache.partial`` takes the kernel."""
    found, how = [], Scoring(WIDTH**-0.5)
    for heads, width in ((16, 64), (8, 128)):
        for tokens in (256, 1024, 4000):
            for queries in (1, 4, 16, 64):
                query, keys, values = (torch.randn(1, heads, size, width) for size in (queries, tokens, tokens))
                ways = {
                    "flash": lambda: seconds_of(lambda: _flash(query, keys, values, how, causal=False)),  # noqa: B023
                    "products": lambda: seconds_of(lambda: attend_masked(query, keys, values, how, None)),  # noqa: B023
                }
                seconds = {name: median(each) for name, each in in_turn(ways, 3 if quick else 15).items()}
                shape = {"heads": heads, "width": width, "tokens": tokens, "queries": queries}
                found.append({"case": "kernels", **shape, **seconds})
    return found


CASES: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    **{f"attention-{branches}": _attention(branches) for branches in (1, 4, 16, 64)},
    **{f"decoding-{branches}": _decoding(branches) for branches in (1, 4, 16)},
    "beams": _beams,
    "kernels": _kernels,
    "set": _template("set128ToT", 60),
    "sorting": _template("sorting128ToT", 40),
}


def render(figures: list[dict[str, Any]]) -> str:
    """Write all tables."""
    return tree_page.render(figures, heads=HEADS, width=WIDTH, prompt=_PROMPT)
