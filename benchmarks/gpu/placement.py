"""Part 4: tables in host memory: gathered on the CPU and copied, or read by a kernel where they lie."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu.fold import BATCHES, Step
from benchmarks.gpu.timed import Call, Found, attempt, captured, medians, timed
from benchmarks.page import megabytes, table
from benchmarks.shapes import PHI_1_5, PYTHIA_70M, PYTHIA_410M, Shape, save
from benchmarks.timing import load, random_tokens
from prefold.convert import FoldOptions, convert_checkpoint

PLACEMENTS = ("device", "host", "disk")
_TOKENS, _ROWS, _WIDTH = (1, 16, 256, 4096), 50_000, 8192


def _kernel() -> Any:
    """Return a kernel that copies rows from wherever the pointer leads: pinned memory is one address space's."""
    import triton
    import triton.language as tl

    @triton.jit
    def gather(ids, rows, out, width, SIZE: tl.constexpr):  # noqa: ANN001, ANN202, N803
        token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * SIZE + tl.arange(0, SIZE)
        row = tl.load(ids + token)
        tl.store(out + token * width + at, tl.load(rows + row * width + at, mask=at < width), mask=at < width)

    return lambda ids, rows, out: gather[len(ids), triton.cdiv(rows.shape[1], 1024)](
        ids, rows, out, rows.shape[1], SIZE=1024
    )


def _look_ups(rows: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    """Return ways to bring rows that lie in the host's memory to a device."""
    there, kernel = torch.empty(len(ids), rows.shape[1], dtype=rows.dtype, device=ids.device), None
    pinned = torch.empty(there.shape, dtype=rows.dtype, pin_memory=ids.is_cuda)

    def gathered() -> torch.Tensor:
        torch.index_select(rows, 0, ids.cpu(), out=pinned)
        return there.copy_(pinned, non_blocking=True)

    def read() -> torch.Tensor:
        nonlocal kernel
        kernel = kernel or _kernel()
        kernel(ids, rows, there)
        return there

    return {"gathered on the CPU": gathered, "read by a kernel": read}


def _look_up(tokens: int, rows: torch.Tensor, device: str, *, quick: bool) -> dict[str, Any]:
    ids = random_tokens(len(rows), 1, tokens)[0].to(device)
    made: dict[str, Call | str] = {}
    for name, call in _look_ups(rows, ids).items():
        made[name] = attempt(partial(_right, call, rows, ids))
        made[f"{name}, graph"] = attempt(partial(captured, call, device))
    times, failed = timed(made, device, quick=quick)
    figures = {"kind": "look-up", "tokens": tokens, "bytes": tokens * rows.shape[1] * rows.itemsize}
    return figures | {"seconds": medians(times), "failed": failed}


def _right(call: Any, rows: torch.Tensor, ids: torch.Tensor) -> Call:
    """Return a look-up whose rows are those of the table.

    Raises:
        ValueError: they are not.
    """
    if not torch.equal(call().cpu(), rows[ids.cpu()]):
        raise ValueError("other rows")
    return call  # type: ignore[no-any-return]


def _models(shape: Shape, device: str, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield memory and steps of a folded model in each placement."""
    with TemporaryDirectory(prefix="prefold-bench-") as scratch:
        source = str(save(shape, Path(scratch), device))
        out = convert_checkpoint(source, Path(scratch) / "folded", options=FoldOptions(device=device)).out
        for placement in PLACEMENTS:
            before = _allocated(device)
            model = load(out, device_map=device, prefold_placement=placement)
            where = {"kind": "model", "shape": shape.name, "placement": placement}
            where |= {"memory": _allocated(device) - before}
            for batch in BATCHES[:1] if quick else BATCHES:
                yield where | {"batch": batch} | _steps(Step(model, batch), device, quick=quick)
            del model


def _allocated(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.memory_allocated()


def _steps(step: Step, device: str, *, quick: bool) -> dict[str, Any]:
    """Return the seconds of a step, eager and in a graph, or why there is none."""
    times, failed = timed({"eager": step, "graph": attempt(partial(captured, step, device))}, device, quick=quick)
    return medians(times) | {"failed": failed.get("graph", "")}


def measure(device: str, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the figures of look-ups, and of models."""
    made = torch.Generator().manual_seed(0)
    size = (512, 64) if quick else (_ROWS, _WIDTH)
    rows = torch.empty(size, dtype=torch.bfloat16, pin_memory=device != "cpu").normal_(generator=made)
    for tokens in _TOKENS[:2] if quick else _TOKENS:
        yield _look_up(tokens, rows, device, quick=quick)
    shapes = (PYTHIA_70M.changed("small", num_hidden_layers=2, vocab_size=512),) if quick else (PYTHIA_410M, PHI_1_5)
    for shape in shapes:
        yield from _models(shape, device, quick=quick)


def render(found: Found) -> str:
    """Write the figures."""
    figures = found["placement"]
    look_ups, models = ([each for each in figures if each["kind"] == kind] for kind in ("look-up", "model"))
    parts = []
    if look_ups:
        names = list(dict.fromkeys(name for each in look_ups for name in [*each["seconds"], *each["failed"]]))
        rows = [[f"{each['tokens']:,}", f"{each['bytes'] / 1e6:.2f}", *(_cell(each, name) for name in names)]
                for each in look_ups]  # fmt: skip
        parts.append("Microseconds until rows of 16 KiB from pinned host memory are on the device.")
        parts.append(table(["tokens", "MB", *names], rows))
    if models:
        head = ["", "batch", "device memory MB", "eager, ms", "graph, ms"]
        cells = [
            [f"{each['shape']}, `{each['placement']}`", f"{each['batch']}", megabytes(each["memory"]),
             f"{each['eager'] * 1e3:.3f}", f"{each['graph'] * 1e3:.3f}" if "graph" in each else "not captured"]
            for each in models
        ]  # fmt: skip
        parts.append(table(head, cells))
    why = {f"- {name}: {text}" for each in look_ups for name, text in each["failed"].items()}
    why |= {f"- {each['placement']}: {each['failed']}" for each in models if each["failed"]}
    return "\n\n".join([*parts, *(["\n".join(sorted(why))] if why else [])])


def _cell(found: dict[str, Any], name: str) -> str:
    return f"{found['seconds'][name] * 1e6:.1f}" if name in found["seconds"] else ""
