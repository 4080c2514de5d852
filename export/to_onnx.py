"""A decoder as an ONNX graph: traced by transformers' exporter, named as runtimes load it, weights in two files."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import external_data
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from transformers.exporters.exporter_onnx import OnnxExporter

from prefold.export.errors import NotExported
from prefold.export.genai import genai_config
from prefold.export.in_runtime import TABLES
from prefold.export.target import Target
from prefold.export.trace import CacheShape, trace

_MODEL, _WEIGHTS, _GENAI = "model.onnx", "model.onnx.data", "genai_config.json"
# Bytes: shapes and indices stay in the graph, where a runtime reads them to infer shapes.
_SMALL = 512


def _write(model: Any, folder: Path, table: Collection[str], context: int) -> None:
    """Write the graph, the tensors of ``table`` into a file of their own, all others into another, and GenAI's config.

    Raises:
        NotExported: the exporter does not take the model.
    """
    traced = trace(OnnxExporter, model)
    _name(traced.program.graph, traced.cache)
    ClearMetadataAndDocStringPass()(traced.program)  # where on this machine every node comes from
    _save(traced.program, folder, set(table))
    content = genai_config(model, traced.inputs, traced.cache, _MODEL, context)
    (folder / _GENAI).write_text(json.dumps(content, indent=2) + "\n")


def _save(program: Any, folder: Path, table: set[str]) -> None:
    values = list(program.graph.initializers.values())
    rest = {value.name for value in values if value.const_value.nbytes >= _SMALL} - table
    for file, names in ((TABLES["onnx"], table), (_WEIGHTS, rest)):
        group = [value for value in values if value.name in names]
        stored = external_data.convert_tensors_to_external([each.const_value for each in group], folder, file)
        for value, tensor in zip(group, stored, strict=True):
            value.const_value = tensor
    onnx_ir.save(program, folder / _MODEL)


def _name(graph: Any, cache: CacheShape) -> None:
    """Name inputs, outputs and their dimensions; other shapes, which runtimes infer, go."""
    parts = cache.names
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


def _stored(folder: Path, names: Collection[str]) -> dict[str, NDArray[np.uint8]]:
    graph = onnx_ir.load(folder / _MODEL).graph
    found: dict[str, Any] = {
        name: graph.initializers[name].const_value for name in graph.initializers.keys() & set(names)
    }
    return {
        name: np.memmap(folder / str(tensor.location), np.uint8, "r", tensor.offset, (tensor.nbytes,))
        for name, tensor in found.items()
    }


TARGET = Target("onnx", "onnxruntime", "torch", True, _write, _stored)
