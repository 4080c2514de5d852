"""A decoder as an exporter of transformers traces it: new tokens behind those in a cache, which may be none."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from prefold.convert.fold import quiet_loading
from prefold.convert.model import accepted
from prefold.export.errors import NotExported, exporter_code

_PAST, _NEW = 5, 3  # differ from each other and from a batch of two: no dimension is taken for another


@dataclass(frozen=True)
class CacheShape:
    """The cache of a decoder: layers, and heads of keys and values and their width, alike in all layers."""

    layers: int
    heads: int
    width: int

    @property
    def names(self) -> list[str]:
        """The tensors of a cache in the order of a graph's inputs and outputs: ``0.key``, ``0.value``, ``1.key``."""
        return [f"{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]


@dataclass(frozen=True)
class Traced:
    """A decoder in the form of an exporter, the names of its inputs beside the cache, and the cache."""

    program: Any
    inputs: list[str]
    cache: CacheShape


def trace(exporter: Any, model: Any, *, batch: int = 2, most: int | None = None) -> Traced:
    """Trace a decoder with a cache: a pass over new tokens behind those in the cache, which may be none.

    Lengths are free, up to ``most``, and so is a batch of more than one.

    Raises:
        NotExported: the exporter does not take it, or its cache is not keys and values of every layer.
    """
    inputs, cache = _sample(model, batch)
    with exporter_code("transformers' exporter does not take it"), _quiet():
        config = exporter.config_class(dynamic=True, dynamic_shapes=_dynamic(inputs, cache, most))
        program = exporter().export(model, inputs, config=config).program
    return Traced(program, [name for name in inputs if name != "past_key_values"], cache)


def _sample(model: Any, batch: int) -> tuple[dict[str, Any], CacheShape]:
    """Return the inputs to trace with; every layer's cache keeps all tokens, also those behind a window."""
    past, new = torch.zeros(batch, _PAST, dtype=torch.long), torch.zeros(batch, _NEW, dtype=torch.long)
    with exporter_code("does not run with a cache of keys and values"), torch.no_grad():
        kept = model(past, past_key_values=DynamicCache(), use_cache=True).get("past_key_values")
    positions = torch.arange(_PAST, _PAST + _NEW).repeat(batch, 1)
    mask = torch.ones(batch, _PAST + _NEW, dtype=torch.long)
    inputs = {"input_ids": new, "attention_mask": mask, "position_ids": positions, "past_key_values": kept}
    return accepted(model, inputs), _cache_shape(kept)


def _cache_shape(cache: Any) -> CacheShape:
    kept: list[Any] = [
        getattr(layer, part, None) for layer in getattr(cache, "layers", []) for part in ("keys", "values")
    ]
    shapes = {None if each is None else tuple(each.shape) for each in kept}
    if len(shapes) != 1 or None in shapes:
        raise NotExported("its cache is not keys and values of one shape in every layer, which runtimes ask for")
    heads, width = kept[0].shape[1], kept[0].shape[3]
    return CacheShape(len(kept) // 2, heads, width)


def _dynamic(inputs: dict[str, Any], cache: CacheShape, most: int | None) -> dict[str, Any]:
    auto = torch.export.Dim.AUTO
    length = auto(max=most) if most else auto
    batch = {0: auto} if len(inputs["input_ids"]) > 1 else {}
    flat: dict[str, Any] = {name: batch | {1: length} for name in inputs if name != "past_key_values"}
    return flat | {"past_key_values": [batch | {2: length}] * len(cache.names)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters from printing: stdout is for data."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_loading(), warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
