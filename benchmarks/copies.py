"""Seconds and bytes of a conversion of several shards, most of which hold nothing folded, beside ``cp``."""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from page import table
from shapes import MISTRAL, SERIAL, Shape, save
from timing import in_turn

from prefold.convert import FoldOptions, convert_checkpoint

_WAYS = {"cp": None, "convert": FoldOptions(), "convert --link": FoldOptions(link=True)}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _copy(source: Path, out: Path) -> dict[str, float]:
    """Copy the source's shards, and wait for the disk, as a conversion does."""
    out.mkdir()
    subprocess.run(["cp", *_files(source), out], check=True)
    for file in _files(out):
        with file.open("rb") as written:
            os.fsync(written.fileno())
    return {"bytes": sum(file.stat().st_size for file in _files(out)), "shared_bytes": 0}


def _convert(source: Path, out: Path, options: FoldOptions) -> dict[str, float]:
    written = convert_checkpoint(str(source), out, options=options).written
    return {"bytes": written.bytes, "shared_bytes": written.shared_bytes}


def _once(source: Path, options: FoldOptions | None) -> dict[str, float]:
    out, begun = source.with_name("out"), time.perf_counter()
    found = _convert(source, out, options) if options else _copy(source, out)
    seconds = time.perf_counter() - begun
    shutil.rmtree(out)
    return {"seconds": seconds} | found


def _measure(shape: Shape, shard: str, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory(prefix="prefold-bench-") as folder:
        source = save(shape, Path(folder), max_shard_size=shard)
        taken = in_turn({way: partial(_once, source, options) for way, options in _WAYS.items()}, rounds)
        sizes = [file.stat().st_size for file in _files(source)]
    seconds = {way: [each["seconds"] for each in found] for way, found in taken.items()}
    ratios = {way: sorted(map(truediv, found, seconds["cp"])) for way, found in seconds.items()}
    return {"shape": shape.name, "shard": shard, "sizes": sizes, "rounds": rounds} | {
        "ways": {
            way: {name: median(each[name] for each in found) for name in found[0]} for way, found in taken.items()
        },
        "to_cp": {way: {"ratio": median(found), "low": found[0], "high": found[-1]} for way, found in ratios.items()},
    }


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Copy and convert in turn, in another order every round."""
    if quick:
        small = SERIAL.changed("small", hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=4096)
        return [_measure(small, "3MB", 2)]
    deep = SERIAL.changed("Llama-like, 44 layers, float32", num_hidden_layers=44).of(torch.float32)
    return [_measure(deep, "500MB", 3), _measure(MISTRAL.changed("Mistral-7B, bfloat16"), "2GB", 1)]


def render(figures: list[dict[str, Any]]) -> str:
    """Write the section."""
    head = ["", "shards", "", "s", "/ cp", "written GB", "shared GB"]
    rows = [
        [
            found["shape"],
            " + ".join(f"{size / 1e9:.2f}" for size in found["sizes"]),
            way,
            f"{each['seconds']:.1f}",
            "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**found["to_cp"][way]),
            f"{each['bytes'] / 1e9:.2f}",
            f"{each['shared_bytes'] / 1e9:.2f}",
        ]
        for found in figures
        for way, each in found["ways"].items()
    ]
    return _TEXT + table(head, rows)


_TEXT = """## Bytes that a conversion writes

A source of several files, of which one holds what folds. The others go along as they are: copied by the system, cloned
where its file system does that, or linked with `--link`. **cp** copies the source's shards, without a table. Each waits
for the disk, and none checks its result. Seconds are medians over rounds in turn, and ratios are the round's own, with
the lowest and the highest. `--link` spares the writing of whole files alone: the study of the model, the table and the
file that changes stay. Where the disk is fast, `cp` is faster than either. Of a 7B shape in bfloat16 the table is most
of the time here: this processor has no arithmetic in that type, and its rows are computed in it, as the source does.

"""


if __name__ == "__main__":
    sys.stdout.write(render(measure()) + "\n")
