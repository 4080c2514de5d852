"""A decoder as an ExecuTorch program: XNNPACK where it lowers, portable kernels elsewhere, as for the look-up."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir import ExecutorchBackendConfig
from executorch.exir._serialize._cord import Cord
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer
from numpy.typing import NDArray
from transformers.exporters import exporter_executorch
from transformers.exporters.utils import patch_attributes

from prefold.export.in_runtime import TABLES
from prefold.export.target import Target
from prefold.export.trace import Traced, trace

_TABLE = Path(TABLES["executorch"])


def _write(model: Any, folder: Path, table: Collection[str], context: int) -> None:
    """Write a program for one sequence, the tensors of the table beside it, and what a program asks for."""
    nodes = {f"p_{name.replace('.', '_').lower()}" for name in table}
    config = ExecutorchBackendConfig(external_constants=lambda node: _TABLE.stem if node.name in nodes else None)
    # The exporter has no option for files of data.
    with patch_attributes([(exporter_executorch, "_get_backend_config", lambda _: lambda _: config)]):
        traced = trace(exporter_executorch.ExecutorchExporter, model, batch=1, most=context)
    exporter_executorch.ExecutorchExporter.save_program(traced.program, folder / "model.pte")
    traced.program.write_tensor_data_to_file(folder)
    (folder / "decoder.json").write_text(json.dumps(_described(traced, context), indent=2) + "\n")


def _described(traced: Traced, context: int) -> dict[str, Any]:
    """Return inputs and outputs in their order, which have no names in a program."""
    cache = traced.cache
    return {
        "inputs": traced.inputs,
        "cache_inputs": [f"past_key_values.{name}" for name in cache.names],
        "outputs": ["logits", *(f"present.{name}" for name in cache.names)],
        "layers": cache.layers,
        "heads": cache.heads,
        "head_size": cache.width,
        "context_length": context,
    }


def _stored(folder: Path, names: Collection[str]) -> dict[str, NDArray[np.uint8]]:
    read = FlatTensorSerializer().deserialize(Cord((folder / _TABLE).read_bytes()))
    found = {name: read.named_data[name].buffer_index for name in read.named_data.keys() & set(names)}
    return {name: np.frombuffer(read.buffers[at], np.uint8) for name, at in found.items()}


TARGET = Target("executorch", "ExecuTorch", "transformers", False, _write, _stored)
