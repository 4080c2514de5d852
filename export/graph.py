"""A decoder as an ONNX graph: traced by transformers' exporter, named as runtimes load it, weights in two files."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir import external_data
from transformers import DynamicCache
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from prefold.convert.fold import quiet_loading
from prefold.convert.model import accepted
from prefold.export.errors import NotExported, exporter_code

MODEL, WEIGHTS, TABLE = "model.onnx", "model.onnx.data", "table.data"
# Two sequences, and lengths that differ from each other, so that no dimension is taken for another.
_BATCH, _PAST, _NEW = 2, 5, 3
# Bytes: shapes and indices stay in the graph, where a runtime reads them to infer shapes.
_SMALL = 512


@dataclass(frozen=True)
class CacheShape:
    """The cache of a decoder: layers, and heads of keys and values and their width, alike in all layers."""

    layers: int
    heads: int
    width: int


@dataclass(frozen=True)
class DecoderGraph:
    """A decoder's graph, with the names of its inputs."""

    program: Any
    cache: CacheShape

    @property
    def inputs(self) -> list[str]:
        """The inputs beside the cache."""
        return [value.name for value in self.program.graph.inputs if not value.name.startswith("past_key_values.")]

    def save(self, folder: Path, table: Collection[str]) -> None:
        """Write the graph, the tensors of ``table`` into a file of their own, and all others into another."""
        values = list(self.program.graph.initializers.values())
        missing = set(table) - {value.name for value in values}
        if missing:
            raise NotExported(f"{', '.join(sorted(missing))}: the exporter left no tensor of this name in the graph")
        rest = {value.name for value in values if value.const_value.nbytes >= _SMALL} - set(table)
        for file, names in ((TABLE, set(table)), (WEIGHTS, rest)):
            group = [value for value in values if value.name in names]
            stored = external_data.convert_tensors_to_external([each.const_value for each in group], folder, file)
            for value, tensor in zip(group, stored, strict=True):
                value.const_value = tensor
        onnx_ir.save(self.program, folder / MODEL)


def trace_decoder(model: Any) -> DecoderGraph:
    """Trace a decoder with a cache: a pass over new tokens behind those in the cache, which may be none.

    Raises:
        NotExported: the exporter does not take it, or its cache is not keys and values of every layer.
    """
    inputs, cache = _sample(model)
    with exporter_code("transformers' exporter does not take it"), _quiet():
        config = OnnxConfig(dynamic=True, dynamic_shapes=_dynamic(inputs, cache.layers))
        program = OnnxExporter().export(model, inputs, config=config).program
    _name(program.graph, cache)
    _forget_this_machine(program)
    return DecoderGraph(program, cache)


def _sample(model: Any) -> tuple[dict[str, Any], CacheShape]:
    """Return the inputs to trace with; every layer's cache keeps all tokens, also those behind a window."""
    past, new = torch.zeros(_BATCH, _PAST, dtype=torch.long), torch.zeros(_BATCH, _NEW, dtype=torch.long)
    with exporter_code("does not run with a cache of keys and values"), torch.no_grad():
        kept = model(past, past_key_values=DynamicCache(), use_cache=True).get("past_key_values")
    positions = torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1)
    mask = torch.ones(_BATCH, _PAST + _NEW, dtype=torch.long)
    inputs = {"input_ids": new, "attention_mask": mask, "position_ids": positions, "past_key_values": kept}
    return accepted(model, inputs), _cache_shape(kept)


def _cache_shape(cache: Any) -> CacheShape:
    kept = [getattr(layer, part, None) for layer in getattr(cache, "layers", []) for part in ("keys", "values")]
    shapes = {None if each is None else tuple(each.shape) for each in kept}
    if len(shapes) != 1 or None in shapes:
        raise NotExported("its cache is not keys and values of one shape in every layer, which runtimes ask for")
    _, heads, _, width = shapes.pop()
    return CacheShape(len(cache.layers), heads, width)


def _dynamic(inputs: dict[str, Any], layers: int) -> dict[str, Any]:
    auto = torch.export.Dim.AUTO
    flat: dict[str, Any] = {name: {0: auto, 1: auto} for name in inputs if name != "past_key_values"}
    return flat | {"past_key_values": [{0: auto, 2: auto}] * (2 * layers)}


def _name(graph: Any, cache: CacheShape) -> None:
    """Name inputs, outputs and their dimensions; other shapes, which runtimes infer, go."""
    parts = [f"{layer}.{part}" for layer in range(cache.layers) for part in ("key", "value")]
    first = len(graph.inputs) - len(parts)
    if first < 1 or len(graph.outputs) != 1 + len(parts):
        raise NotExported("its graph has other inputs and outputs than tokens, logits and the cache")
    vocabulary = graph.outputs[0].shape[-1]
    for node in graph.all_nodes():
        for made in node.outputs:
            made.shape = None
    lengths = {"attention_mask": "total_sequence_length"}
    for value in graph.inputs[:first]:
        value.shape = onnx_ir.Shape(["batch_size", lengths.get(value.name, "sequence_length")])
    graph.outputs[0].name = "logits"
    graph.outputs[0].shape = onnx_ir.Shape(["batch_size", "sequence_length", vocabulary])
    for values, name, length in (
        (graph.inputs[first:], "past_key_values", "past"),
        (graph.outputs[1:], "present", "total"),
    ):
        for value, part in zip(values, parts, strict=True):
            value.name = f"{name}.{part}"
            value.shape = onnx_ir.Shape(["batch_size", cache.heads, f"{length}_sequence_length", cache.width])


def _forget_this_machine(program: Any) -> None:
    """Take out where in which source file every node comes from."""
    for graph in program.graphs():
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.metadata_props.clear()
        graph.metadata_props.clear()
    for function in program.functions.values():
        function.metadata_props.clear()
        for node in function.all_nodes():
            node.metadata_props.clear()
    program.metadata_props.clear()


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
