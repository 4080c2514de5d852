"""Attention of a step, by vLLM's kernel and over a tree: ``.venv-vllm/bin/python -m benchmarks.tree_attention``.

Both hold the same prompt once, and every sample's own tokens; both are measured in turn. Writes its section of
``docs/tree.md``; with ``--quick`` it measures a short prompt and prints.
"""

import argparse
import os
from pathlib import Path
from statistics import median

import torch
from transformers.masking_utils import causal_mask_function

from benchmarks.engine import set_environment
from benchmarks.machine import describe, sentence
from benchmarks.page import table
from benchmarks.plan_page import show_or_write
from benchmarks.timing import compared, in_turn, seconds_of
from prefold.tree import TreeCache
from prefold.tree.cache.attention import tree_attention
from prefold.tree.cache.masks import TreeMask

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "tree.md"
_HEADS, _KV_HEADS, _WIDTH, _LAYERS = 16, 8, 64, 4
_BLOCK, _OWN = 128, 32
# Of the unit in the last place of outputs near 1: both round them once, and one of them its weights before.
_APART = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class _Tree:
    """A ``TreeCache`` of one prompt and its samples, each with some tokens of its own."""

    def __init__(self, states: "_States") -> None:
        self._states, self._cache = states, TreeCache()
        for layer in range(_LAYERS):
            self._store(layer, states.prompt)
        self._cache.batch_repeat_interleave(states.samples)
        for layer in range(_LAYERS):
            self._store(layer, states.own)

    def _store(self, layer: int, new: torch.Tensor) -> None:
        keys_and_values = new.transpose(1, 2)
        self._cache.store(self._cache.update(keys_and_values, keys_and_values, layer)[0].update, None)

    def step(self) -> torch.Tensor:
        """Store one token of each sample in every layer, and attend from it."""
        mask = TreeMask(mask_function=causal_mask_function, attention_mask=None)
        new, query = (each.transpose(1, 2) for each in (self._states.new, self._states.query))
        for layer in range(_LAYERS):
            keys, values = self._cache.update(new, new, layer)
            out, _ = tree_attention(torch.nn.Module(), query, keys, values, mask)
        return out[:, 0]


class _Paged:
    """The same in vLLM's pages, whose tables share those of the prompt."""

    def __init__(self, states: "_States", room: int) -> None:
        import vllm._custom_ops as kernels

        self._kernels, self._states = kernels, states
        self._length = states.prompt.shape[1] + _OWN
        shared, each = -(-states.prompt.shape[1] // _BLOCK), -(-(room + _OWN + _BLOCK) // _BLOCK)
        own = shared + torch.arange(states.samples * each, dtype=torch.int32).view(states.samples, each)
        # The prompt's last page is full here; a page that is not would be each sample's own.
        self._table = torch.cat(
            [torch.arange(shared, dtype=torch.int32).expand(states.samples, -1), own], 1
        ).contiguous()
        pages = torch.zeros(_LAYERS, int(own.max()) + 1, _KV_HEADS, 2 * _BLOCK, _WIDTH, dtype=states.dtype)
        self._pages = [layer.chunk(2, dim=2) for layer in pages]
        for layer in range(_LAYERS):
            self._store(layer, states.prompt[0], torch.arange(states.prompt.shape[1]))
            for token in range(_OWN):
                self._store(layer, states.own[:, token], self._slots(states.prompt.shape[1] + token))

    def _slots(self, position: int) -> torch.Tensor:
        return self._table[:, position // _BLOCK].long() * _BLOCK + position % _BLOCK

    def _store(self, layer: int, new: torch.Tensor, slots: torch.Tensor) -> None:
        self._kernels.cpu_attn_reshape_and_cache(new, new, *self._pages[layer], slots, "vec")

    def step(self) -> torch.Tensor:
        """Store one token of each sample in every layer, and attend from it."""
        states, slots = self._states, self._slots(self._length)
        self._length += 1
        lengths = torch.full((states.samples,), self._length, dtype=torch.int32)
        starts = torch.arange(states.samples + 1, dtype=torch.int32)
        shape = (states.samples, _HEADS, _KV_HEADS, _WIDTH, lengths, states.dtype, starts, True, -1, "vec", True)
        metadata = self._kernels.cpu_attn_get_scheduler_metadata(*shape)
        out, query = torch.empty_like(states.query[:, 0]), states.query[:, 0]
        how = (starts, lengths, _WIDTH**-0.5, True, None, -1, self._table, 0.0, metadata, None)
        for layer in range(_LAYERS):
            self._store(layer, states.new[:, 0], slots)
            self._kernels.cpu_attention_with_kv_cache(query, *self._pages[layer], out, *how)
        return out


class _States:
    """Random keys, which are the values too, and queries: ``[rows, tokens, heads, width]``."""

    def __init__(self, prompt: int, samples: int, dtype: torch.dtype) -> None:
        self.samples, self.dtype = samples, dtype
        self.prompt = _random(1, prompt, _KV_HEADS, _WIDTH, dtype=dtype, seed=0)
        self.own = _random(samples, _OWN, _KV_HEADS, _WIDTH, dtype=dtype, seed=1)
        self.new = _random(samples, 1, _KV_HEADS, _WIDTH, dtype=dtype, seed=2)
        self.query = _random(samples, 1, _HEADS, _WIDTH, dtype=dtype, seed=3)


def _measure(dtype: torch.dtype, prompt: int, samples: int, rounds: int) -> list[str]:
    states = _States(prompt, samples, dtype)
    tree, paged = _Tree(states), _Paged(states, rounds + 2)
    apart = (tree.step().float() - paged.step().float()).abs().max().item()
    if apart > _APART[dtype]:
        raise RuntimeError(f"the kernels return other outputs, {apart:.1e} apart")
    taken = in_turn({"vLLM": lambda: seconds_of(paged.step), "tree": lambda: seconds_of(tree.step)}, rounds)
    ratio = compared(taken["vLLM"], taken["tree"])
    spread = f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
    times = [f"{median(taken[name]) / _LAYERS * 1e3:.2f}" for name in ("vLLM", "tree")]
    return [str(dtype).removeprefix("torch."), str(samples), *times, spread, f"{apart:.0e}"]


_TEXT = """### Attention alone

Written by `python -m benchmarks.tree_attention`. One layer of a decode step with {heads} heads, {kv_heads} of keys and
values, each of {width} values, after a prompt of {prompt:,} tokens that all samples share and {own} tokens of each
sample's own: the new tokens are stored and attended from. **vLLM** is the kernel of vLLM {vllm} for CPUs without AMX,
whose block tables share the prompt's pages. In turn, {rounds} rounds, medians; above 1 the tree is faster. **apart**
is the largest difference of their outputs, which are near 1. `MKL_CBWR`: {setting}.

"""


def main() -> None:
    """Measure, and write the section, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short prompt and few rounds, shown and not written")
    parser.add_argument("--rounds", type=int, default=25)
    asked = parser.parse_args()
    set_environment()
    import vllm
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    prompt, rounds = (256, 3) if asked.quick else (3968, asked.rounds)
    rows = [
        _measure(dtype, prompt, samples, rounds)
        for dtype in (torch.bfloat16, torch.float32)
        for samples in (1, 4, 16, 64)
    ]
    facts = {"heads": _HEADS, "kv_heads": _KV_HEADS, "width": _WIDTH, "own": _OWN, "prompt": prompt, "rounds": rounds}
    head = ["type", "samples", "vLLM, ms", "tree, ms", "ratio (middle half)", "apart"]
    text = (
        _TEXT.format(**facts, vllm=vllm.__version__, setting=os.environ.get("MKL_CBWR", "not set"))
        + table(head, rows)
        + "\n\n"
        + sentence(describe())
    )
    show_or_write("tree-attention", text, _PAGE, show=asked.quick)


if __name__ == "__main__":
    main()
