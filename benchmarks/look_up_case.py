"""Time the look-up of one folded checkpoint: ``python look_up_case.py SOURCE FOLDED LONGEST ROUNDS``."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from case import tell
from timing import compared, in_turn, load, read_all
from torch import nn
from transformers import PreTrainedModel

# More than a processor's caches hold: what was in them is gone after it was read.
_OTHERS = 256 << 20
# What of a first layer folds: each norm, and the modules that read what it returns.
_FOLDED = {
    "gpt_neox": {"input_layernorm": ["attention.query_key_value"], "post_attention_layernorm": ["mlp"]},
    "phi": {"input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp"]},
    "llama": {"input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]},
}


class _Tokens:
    """Random tokens, other ones every time: no row is in a cache because it was just looked up."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._generator = vocabulary, torch.Generator().manual_seed(0)
        self._others = torch.ones(_OTHERS, dtype=torch.uint8)

    def draw(self, length: int) -> torch.Tensor:
        """Return tokens, ``[1, length]``, after the caches were filled with something else."""
        self._others.view(torch.int64).sum()
        return torch.randint(self._vocabulary, (1, length), generator=self._generator)


def _rounds(most: int, length: int) -> int:
    """Measure what takes long less often: it varies less."""
    return max(most // (1 if length <= 1024 else 2), 2)


def _lengths(longest: int) -> list[int]:
    return [1 << power for power in range(longest.bit_length())]


def _seconds(work: Callable[[], Any]) -> float:
    """Time work up to the moment at which its result is there; to let go of the result is not part of it."""
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _bandwidth(tables: dict[str, Any], tokens: _Tokens, length: int, rounds: int) -> dict[str, Any]:
    """Time look-ups beside copies of as many bytes: into memory that was used before, and into new memory."""
    row_bytes = tables["device"](tokens.draw(1)).untyped_storage().nbytes()
    tables["device"].row.clear()
    source = torch.ones(length * row_bytes, dtype=torch.uint8)
    target = source.clone()

    def look_up(table: Any) -> float:
        seconds = _seconds(partial(table, tokens.draw(length)))
        table.row.clear()
        return seconds

    def copy(work: Callable[[], Any]) -> float:
        tokens.draw(1)
        return _seconds(work)

    timed = {name: partial(look_up, table) for name, table in tables.items()}
    timed |= {"copy": partial(copy, lambda: target.copy_(source)), "new": partial(copy, source.clone)}
    seconds = in_turn(timed, rounds)
    return {
        "tokens": length,
        "bytes": 2 * source.nbytes,
        **{f"{name}_s": median(each) for name, each in seconds.items()},
        "to_copy": compared(seconds["copy"], seconds["device"]),
        "to_new": compared(seconds["new"], seconds["device"]),
    }


class _FirstLayer:
    """What a folded model does not compute, called as the model calls it; in the folded model the stand-ins are."""

    def __init__(self, model: PreTrainedModel, folded: dict[str, list[str]]) -> None:
        layer: nn.Module = model.base_model.layers[0]  # type: ignore[index, assignment]
        self._embedding = model.get_input_embeddings()
        self._norms = [(layer.get_submodule(norm), [layer.get_submodule(m) for m in folded[norm]]) for norm in folded]

    @torch.no_grad()
    def run(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Return what the rest of the layer reads: the residual, and every projection."""
        hidden = self._embedding(ids)
        made = [hidden]
        for norm, readers in self._norms:
            normed = norm(hidden)
            made += [reader(normed) for reader in readers]
        return made

    def time(self, tokens: _Tokens, buffers: list[torch.Tensor]) -> tuple[float, float]:
        """Return the seconds until all is there, and until all of it was read once, too."""
        ids = tokens.draw(buffers[0].shape[1])
        start = time.perf_counter()
        made = self.run(ids)
        there = time.perf_counter()
        for one, buffer in zip(made, buffers, strict=True):
            torch.add(one, 1, out=buffer)
        read = time.perf_counter()
        return there - start, read - start


def _prefill(source: _FirstLayer, folded: _FirstLayer, tokens: _Tokens, length: int, rounds: int) -> dict[str, Any]:
    buffers = [one.contiguous().clone() for one in folded.run(tokens.draw(length))]
    timed = {"source": partial(source.time, tokens, buffers), "folded": partial(folded.time, tokens, buffers)}
    found = in_turn(timed, rounds)
    (before, before_read), (after, after_read) = (list(zip(*found[name], strict=True)) for name in timed)
    return {
        "tokens": length,
        "source_s": median(before),
        "folded_s": median(after),
        **compared(before, after),
        "read": compared(before_read, after_read),
    }


def _first_layers(source: PreTrainedModel, folded: PreTrainedModel) -> tuple[_FirstLayer, _FirstLayer]:
    """Return what folds of both; raises ``ValueError`` where that is not what this file takes for granted."""
    names = _FOLDED[source.config.model_type]
    known = [name for readers in names.values() for name in readers]
    [fold] = folded.config.prefold["folds"]
    columns = [column["module"] for column in fold["columns"]]
    if len(columns) != len(known) or not all(map(str.endswith, sorted(columns), sorted(known))):
        raise ValueError(f"not the columns that are timed: {columns}")
    return _FirstLayer(source, names), _FirstLayer(folded, names)


def main(source: str, folded: str, longest: str, rounds: str) -> None:
    """Time the look-up at every length; of the source, the work that it replaces."""
    models = {placement: read_all(load(Path(folded), prefold_placement=placement)) for placement in ("device", "disk")}
    tables = {placement: model.get_input_embeddings() for placement, model in models.items()}
    tokens = _Tokens(models["device"].config.vocab_size)
    found: dict[str, Any] = {"bandwidth": [], "prefill": []}
    for length in _lengths(int(longest)):
        found["bandwidth"].append(_bandwidth(tables, tokens, length, _rounds(int(rounds), length)))
    if source:
        layers = _first_layers(read_all(load(Path(source))), models["device"])
        for length in _lengths(int(longest)):
            found["prefill"].append(_prefill(*layers, tokens, length, _rounds(int(rounds), length)))
    tell(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
