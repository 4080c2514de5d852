"""A decoder as an ONNX graph: traced by transformers' exporter, named as runtimes load it, weights in two files."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx_ir import external_data
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from prefold.export.errors import NotExported, exporter_code
from prefold.export.genai import genai_config
from prefold.export.sample import CacheShape, dynamic, quiet, sample
from prefold.export.split_rows import SplitRows
from prefold.export.target import Logits, Target
from prefold.verify import Outcome

MODEL, WEIGHTS, TABLE = "model.onnx", "model.onnx.data", "table.data"
_GENAI = "genai_config.json"
_ROWS_AT_ONCE = 4096
# Bytes: shapes and indices stay in the graph, where a runtime reads them to infer shapes.
_SMALL = 512


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

    def describe(self, folder: Path, model: Any, context: int) -> None:
        """Write what ONNX Runtime GenAI reads beside a graph."""
        content = genai_config(model, self.inputs, self.cache, MODEL, context)
        (folder / _GENAI).write_text(json.dumps(content, indent=2) + "\n")


def trace_decoder(model: Any, _: int) -> DecoderGraph:
    """Trace a decoder with a cache: a pass over new tokens behind those in the cache, which may be none.

    Raises:
        NotExported: the exporter does not take it, or its cache is not keys and values of every layer.
    """
    inputs, cache = sample(model)
    with exporter_code("transformers' exporter does not take it"), quiet():
        config = OnnxConfig(dynamic=True, dynamic_shapes=dynamic(inputs, cache))
        program = OnnxExporter().export(model, inputs, config=config).program
    _name(program.graph, cache)
    _forget_this_machine(program)
    return DecoderGraph(program, cache)


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


def check_process(run: Logits) -> Outcome:
    """Require that the process which ran the artefact had no torch, and mapped the table's file."""
    problems = ["the process imported torch"] if run.process["torch"] else []
    problems += [f"{TABLE} is not mapped"] if run.process["mapped"] is False else []
    version = run.process["version"]
    return Outcome(not problems, f"onnxruntime {version}, without torch, {TABLE} mapped", run.process, problems)


def check_rows(folder: Path, tables: dict[str, SplitRows]) -> Outcome:
    """Compare every row of an artefact's table with the folded checkpoint's, byte for byte."""
    stored = onnx_ir.load(folder / MODEL).graph.initializers
    rows, wrong, size = 0, list[str](), (folder / TABLE).stat().st_size
    for module, split in tables.items():
        rows += len(split.table)
        differ = np.zeros(len(split.table), bool)
        for name, extents in split.extents.items():
            tensor: Any = stored[f"{module}.{name}"].const_value
            differ |= _rows_that_differ(folder / str(tensor.location), tensor.offset, split.table, extents)
        wrong += [f"{module}: row {row} is not the checkpoint's" for row in np.flatnonzero(differ)[:3]]
    summary = f"{rows:,} rows, byte for byte the checkpoint's; {size / 1e6:.2f} MB in {TABLE}"
    return Outcome(not wrong, summary, {"rows": rows, "bytes": size}, wrong)


def _rows_that_differ(file: Path, offset: int, table: torch.Tensor, extents: list[tuple[int, int]]) -> NDArray[Any]:
    """Return, for every row, whether a tensor in a file has other bytes than the table has in ``extents``."""
    width = sum(size for _, size in extents)
    made = np.memmap(file, np.uint8, "r", offset, (len(table), width))
    differ = np.empty(len(table), bool)
    for first in range(0, len(table), _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        read = table[chunk].contiguous().view(torch.uint8).numpy()
        wanted = np.concatenate([read[:, start : start + size] for start, size in extents], 1)
        differ[chunk] = (made[chunk] != wanted).any(1)
    return differ


TARGET = Target("onnxruntime", "prefold.export.in_onnxruntime", True, trace_decoder, check_process, check_rows)
