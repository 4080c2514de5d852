"""Source and fold in edge runtimes: latency of a cached token, resident memory, size on disk.

The artefacts are those of ``prefold export``, unproven: weights are random, and proofs have tests of their own.
"""

import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from case import run_case
from page import megabytes, table
from shapes import DRAFT, PYTHIA_70M, PYTHIA_160M, built

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.export.errors import EXTRAS, missing_packages
from prefold.export.loading import load_decoder
from prefold.export.split_rows import split_tables, tensors_of
from prefold.export.target import target_of

_SHAPES = PYTHIA_70M, PYTHIA_160M, DRAFT
_STEPS, _ROUNDS, _CONTEXT = 8, 15, 256
SOURCE, FOLD, INT8, WHOLE = "source", "float32 rows", "int8 rows", "float32 rows, all in one file"
# Bytes: what a file of protobuf may hold.
_MOST = 2**31


def _folds(source: Path) -> dict[str, Path]:
    options = {FOLD: FoldOptions(), INT8: FoldOptions(table_dtype="int8")}
    return {
        name: convert_checkpoint(str(source), source.with_name(name.replace(" ", "-")), options=each).out
        for name, each in options.items()
    }


def _artefacts(to: str, folders: dict[str, Path], out: Path) -> dict[str, Path]:
    """Write every checkpoint for a runtime."""
    made = {name: out / f"{to}-{folder.name}" for name, folder in folders.items()}
    for name, folder in folders.items():
        made[name].mkdir()
        options = {} if name == SOURCE else {"prefold_placement": "disk"}  # where rows are read as they are stored
        model = load_decoder(folder, torch.float32, **options)
        tables = split_tables(model) if options else {}
        target_of(to).write(model, made[name], tensors_of(tables), _CONTEXT)
    return made


def _in_one_file(folder: Path) -> dict[str, Path]:
    """Write a graph with its tensors in it, which no runtime maps, where a file can hold these."""
    if _bytes(folder) >= _MOST:
        return {}
    whole = folder.with_name(f"{folder.name}-whole")
    whole.mkdir()
    onnx.save_model(onnx.load(folder / "model.onnx"), whole / "model.onnx")
    return {WHOLE: whole}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _measured(to: str, folders: dict[str, Path], vocabulary: int, steps: int, rounds: int) -> dict[str, Any]:
    """Measure every checkpoint in a runtime."""
    made = _artefacts(to, folders, folders[SOURCE].parent)
    speed = run_case("edge_speed", to, steps, rounds, vocabulary, *made.values())
    every = made | (_in_one_file(made[FOLD]) if to == "onnx" else {})
    return {
        "runtime": target_of(to).name,
        "bytes": {name: _bytes(folder) for name, folder in every.items()},
        "memory": {name: run_case("edge_memory", to, folder, vocabulary) for name, folder in every.items()},
        "speed": dict(zip(made, speed, strict=True)),
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Time source and folds in one process, and measure memory in one for each, in every runtime that is installed."""
    shapes, steps, rounds, found = _SHAPES, _STEPS, _ROUNDS, list[dict[str, Any]]()
    if quick:
        shapes, steps, rounds = (PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=4096),), 2, 3
    for shape in shapes:
        with built(shape.of(torch.float32)) as source:
            folders = {SOURCE: source} | _folds(source)
            for to in [to for to in EXTRAS if not missing_packages(to)]:
                each = _measured(to, folders, shape.settings["vocab_size"], steps, rounds)
                found.append({"shape": shape.name} | each)
                sys.stderr.write(f"{shape.name} in {each['runtime']} done\n")
    return found


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["float32", "runtime", "", "on disk MB", "loaded MB", "after a text MB", "token ms", "source / it"]
    return "\n".join([_TEXT, table(head, [row for found in figures for row in _rows(found)])])


def _rows(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            found["shape"],
            found["runtime"],
            name,
            megabytes(size),
            megabytes(found["memory"][name]["loaded"]),
            megabytes(found["memory"][name]["used"]),
            *_times(found["speed"].get(name)),
        ]
        for name, size in found["bytes"].items()
    ]


def _times(speed: dict[str, float] | None) -> list[str]:
    if speed is None:
        return ["", ""]
    return [f"{speed['seconds'] * 1e3:.2f}", f"{speed['ratio']:.3f} ({speed['low']:.3f} to {speed['high']:.3f})"]


_TEXT = """## Edge

Artefacts of `prefold export`, and of the source by the same exporter, in their runtimes, which choose the number of
threads themselves. **token ms**: the median time of a step of one token behind a prompt of 32. **source / it**: how
many times as fast as the source's artefact, the median of ratios of rounds in turn, and the middle half of the rounds;
below 1 the fold is slower. Memory is what only that process holds beyond its libraries, pages of mapped files among it:
**loaded**, and **after a text** of 16 tokens read and 16 more, with no file in the system's cache before. The table is
mapped from its file, but in a graph with all tensors in one file, which is read whole. A mapped table is in memory as
far as the runtime reads it: onnxruntime holds the rows that were looked up, OpenVINO the whole float32 table once the
model is compiled, and ExecuTorch's reader for Python the whole table, whose pages it locks. Where the file is in the
system's cache in large pages, a look-up maps one of up to 2 MB. A middle half that has 1 within shows no difference in
speed.
"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
