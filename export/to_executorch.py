"""A decoder as an ExecuTorch program: XNNPACK where it lowers, portable kernels elsewhere, as for the look-up."""

import json
import mmap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.exporters.configs import ExecutorchConfig
from transformers.exporters.exporter_executorch import ExecutorchExporter

from prefold.export.errors import exporter_code
from prefold.export.sample import CacheShape, dynamic, quiet, sample
from prefold.export.split_rows import SplitRows
from prefold.export.target import Logits, Target
from prefold.verify import Outcome

MODEL, _DESCRIPTION = "model.pte", "decoder.json"


@dataclass(frozen=True)
class DecoderProgram:
    """A decoder's program for one sequence, with the names of its inputs."""

    program: Any
    inputs: list[str]
    cache: CacheShape

    def save(self, folder: Path, table: Collection[str]) -> None:
        """Write the program; the tensors of ``table`` are in it."""
        ExecutorchExporter.save_program(self.program, folder / MODEL)

    def describe(self, folder: Path, model: Any, context: int) -> None:
        """Write inputs and outputs in their order, which have no names in a program."""
        cache = self.cache
        content = {
            "inputs": self.inputs,
            "cache_inputs": [f"past_key_values.{name}" for name in cache.names],
            "outputs": ["logits", *(f"present.{name}" for name in cache.names)],
            "layers": cache.layers,
            "heads": cache.heads,
            "head_size": cache.width,
            "context_length": context,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n")


def trace_decoder(model: Any, context: int) -> DecoderProgram:
    """Trace a decoder with a cache, with memory for ``context`` tokens, as ``to_onnx.trace_decoder`` does.

    Raises:
        NotExported: the exporter does not take it, or its cache is not keys and values of every layer.
    """
    inputs, cache = sample(model, batch=1)
    with exporter_code("transformers' exporter does not take it"), quiet():
        config = ExecutorchConfig(dynamic=True, dynamic_shapes=dynamic(inputs, cache, context))
        program = ExecutorchExporter().export(model, inputs, config=config).program
    return DecoderProgram(program, [name for name in inputs if name != "past_key_values"], cache)


def check_process(run: Logits) -> Outcome:
    """Require that the process which ran the artefact had no transformers."""
    problems = ["the process imported transformers"] if run.process["transformers"] else []
    return Outcome(not problems, f"executorch {run.process['version']}, without transformers", run.process, problems)


def check_rows(folder: Path, tables: dict[str, SplitRows]) -> Outcome:
    """Find every tensor of the rows in the program, byte for byte."""
    rows, size, wrong = sum(len(split.table) for split in tables.values()), 0, list[str]()
    with (folder / MODEL).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for module, split in tables.items():
            for name in split.extents:
                stored = split.get_buffer(name).contiguous().view(-1).view(torch.uint8).numpy()
                size += len(stored)
                if content.find(stored.data) < 0:
                    wrong.append(f"{module}.{name}: not in {MODEL} as the checkpoint has it")
    summary = f"{rows:,} rows, byte for byte the checkpoint's; {size / 1e6:.2f} MB of {MODEL}"
    return Outcome(not wrong, summary, {"rows": rows, "bytes": size}, wrong)


TARGET = Target("executorch", "prefold.export.in_executorch", False, trace_decoder, check_process, check_rows)
