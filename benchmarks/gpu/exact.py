"""Part 1: on a GPU, too, kernels, tables and verification are right."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.gpu.forest import forest
from benchmarks.gpu.timed import Found
from benchmarks.page import table
from benchmarks.shapes import PYTHIA_70M, SERIAL, Shape, save
from benchmarks.timing import load, random_tokens
from prefold.convert import FoldOptions, convert_checkpoint
from prefold.convert.checkpoint.files import TABLE
from prefold.verify import verify_checkpoint
from tests.tree.flattened import TOLERANCES, Case, by_triton, few_shot, interpret, naive

_WORKERS = 8
_SMALL = {"vocab_size": 2048, "num_hidden_layers": 2}
_SHAPES = (PYTHIA_70M.changed("parallel block", **_SMALL), SERIAL.changed("serial block", **_SMALL))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What the kernels are compiled for, the most common first.
_HEADS = [(32, 8, 128), (32, 32, 80), (14, 2, 64), (16, 1, 256), (8, 8, 96), (24, 8, 128)]
_HOW: list[dict[str, Any]] = [
    {"softcap": 20.0},
    {"window": ("sliding", 70)},
    {"window": ("chunked", 64)},
    {"softcap": 3.0, "window": ("sliding", 70)},
]


def cases(*, quick: bool = False) -> dict[str, Case]:
    """Return trees, head layouts, windows and soft caps, by name."""
    found = {
        "values wider than keys": few_shot(140, 5, 9, heads=6, kv_heads=2, head_dim=64, width=128),
        "soft-capped, in a window": few_shot(200, 6, 30, softcap=3.0, window=("sliding", 70)),
        "three roots, three levels": Case(tuple(forest([3, 6, 70], [90, 30, 5])), 70, tile=64, size=256),
    }
    for dtype in () if quick else TOLERANCES:
        for heads, kv_heads, width in _HEADS:
            shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": width, "width": width, "dtype": dtype}
            found[f"{heads}/{kv_heads} heads of {width}, {dtype}"] = few_shot(300, 12, 20, **shape)
        for how in _HOW:
            shape = {"heads": 8, "kv_heads": 2, "head_dim": 64, "width": 64, "dtype": dtype}
            spelled = ", ".join(f"{name} {value}" for name, value in how.items())
            found[f"{spelled}, {dtype}"] = few_shot(200, 6, 30, **shape, **how)
    return found


def _kernel(name: str, case: Case) -> dict[str, Any]:
    """Compare a case with attention in float64 that is too slow to be wrong."""
    found, expected = by_triton(case), naive(case)
    blind = np.isneginf(expected[1])
    finite = [np.where(blind, 0, each[1]) for each in (found, expected)]
    out, total = float(np.abs(found[0] - expected[0]).max()), float(np.abs(finite[0] - finite[1]).max())
    right = out < TOLERANCES[case.dtype] and bool((np.isneginf(found[1]) == blind).all())
    return {"check": "kernel", "name": name, "difference": out, "total": total, "passed": right}


def _kernels(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Compile and compare side by side: compiling takes most of the time."""
    spawn, made = multiprocessing.get_context("spawn"), cases(quick=quick)
    with ProcessPoolExecutor(1 if quick else _WORKERS, spawn, interpret) as pool:
        running = {pool.submit(_kernel, name, case): name for name, case in made.items()}
        for done in as_completed(running):
            broken = done.exception()
            failed = {"check": "kernel", "name": running[done], "passed": False, "error": str(broken)}
            yield failed if broken else done.result()


def ulps(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return how many values of their type lie between two tensors' values."""
    bits = {2: torch.int16, 4: torch.int32}[one.element_size()]
    ordered = [each.view(bits).long() for each in (one, other)]
    ordered = [torch.where(each < 0, torch.iinfo(bits).min - each, each) for each in ordered]
    return (ordered[0] - ordered[1]).abs()


def _table(folder: Path) -> torch.Tensor:
    with safe_open(folder / TABLE, "pt") as file:
        [name] = file.keys()
        rows: torch.Tensor = file.get_tensor(name)
    return rows


def _folded(shape: Shape, device: str) -> Iterator[dict[str, Any]]:
    """Compare the rows that a device computes with a CPU's, verify the fold, and run it beside its source there."""
    name = f"{shape.name}, {str(shape.dtype).removeprefix('torch.')}"
    with TemporaryDirectory(prefix="prefold-bench-") as scratch:
        source = save(shape, Path(scratch))
        outs = {each: Path(scratch) / f"on-{each}" for each in ("cpu", device)}
        for each, out in outs.items():
            convert_checkpoint(str(source), out, options=FoldOptions(device=each))
        apart = ulps(_table(outs["cpu"]), _table(outs[device]))
        share, most = float((apart > 0).float().mean()), int(apart.max())
        yield {"check": "rows", "name": name, "different": share, "ulps": most, "passed": True}
        failed = verify_checkpoint(str(source), outs[device]).failed
        yield {"check": "verify", "name": name, "passed": not failed, "failed": ", ".join(failed)}
        yield {"check": "logits", "name": name} | _beside(source, outs[device], device)


@torch.no_grad()
def _beside(source: Path, folded: Path, device: str) -> dict[str, Any]:
    """Compare what both say of a prompt, and of the tokens that they continue it with greedily."""
    made = []
    for folder in (source, folded):
        model: Any = load(folder, device_map=device)
        prompt = random_tokens(model.config.vocab_size, 1, 32).to(device)
        how = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
        made.append(model.generate(prompt, max_new_tokens=16, min_new_tokens=16, **how))
    one, other = (torch.stack(each.logits, 1).float() for each in made)
    same = bool(torch.equal(made[0].sequences, made[1].sequences))
    return {"difference": float((one - other).abs().max()), "same_tokens": same, "passed": same}


def measure(device: str, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the result of each check."""
    yield from _kernels(quick=quick)
    for shape in _SHAPES[:1] if quick else _SHAPES:
        for dtype in _DTYPES[:1] if quick else _DTYPES:
            yield from _folded(shape.of(dtype), device)


def render(found: Found) -> str:
    """Write the results."""
    figures = found["exact"]
    kernels, rows, proofs, said = (
        [each for each in figures if each["check"] == kind] for kind in ("kernel", "rows", "verify", "logits")
    )
    wrong = [each for each in figures if not each["passed"]]
    parts = [f"Kernels: {sum(each['passed'] for each in kernels)} of {len(kernels)} cases agree with float64."]
    if rows:
        cells = [[each["name"], f"{each['different']:.2%}", f"{each['ulps']:,}"] for each in rows]
        parts.append(table(["rows computed here against a CPU's", "values that differ", "ulps at most"], cells))
    if said:
        cells = [[each["name"], f"{each['difference']:.2g}", "yes" if each["same_tokens"] else "no"] for each in said]
        parts.append(table(["folded against source, both here", "logits differ by", "same greedy tokens"], cells))
    parts.append(f"Verified: {sum(each['passed'] for each in proofs)} of {len(proofs)} folds.")
    parts += [
        f"- **{each['name']}**: {each.get('error') or each.get('failed') or each['difference']}" for each in wrong
    ]
    return "\n\n".join(parts)
