"""Run tasks on chips that are processes of this machine: ``python -m benchmarks.collectives_worker TASKS RESULTS``.

The processes talk over gloo; what they find is what the first of them writes. One that fails ends all of them.
"""

import json
import os
import socket
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import start_processes

from benchmarks.collectives_block import block, random_tokens, random_weights
from benchmarks.collectives_chip import Block, furthest
from benchmarks.collectives_ledger import Ledger, Sent
from benchmarks.collectives_mesh import Chips
from benchmarks.collectives_task import Model, Task

CHIPS = 8
_LIMIT = timedelta(seconds=120)


def main() -> None:
    """Start the processes, and wait for them."""
    tasks, results = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    start_processes(_process, (tasks, results), CHIPS, start_method="fork")


def _process(rank: int, tasks: Path, results: Path) -> None:
    meeting = f"file://{results}.store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=CHIPS, timeout=_LIMIT)
    meshes: dict[tuple[int, int, int], Chips] = {}
    found = []
    for task in map(_task, json.loads(tasks.read_text(encoding="utf-8"))):
        if task.mesh not in meshes:
            meshes[task.mesh] = Chips(task.mesh)
        found.append(_run(task, meshes[task.mesh]))
    if rank == 0:
        results.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _task(stored: dict[str, Any]) -> Task:
    return Task(**{**stored, "model": Model(**stored["model"]), "mesh": tuple(stored["mesh"])})


@torch.no_grad()
def _run(task: Task, chips: Chips) -> dict[str, Any]:
    """Return what every process sent, and how far the result is from the block's on one chip."""
    weights, tokens = random_weights(task.model), random_tokens(task.model)
    ledger, counter = Ledger(), CommDebugMode()
    share = Block(task, weights, chips, ledger)
    with ledger, counter:
        out = share(tokens)
    if counter.get_total_counts() != len(ledger.sent):
        raise RuntimeError(f"CommDebugMode saw {counter.get_total_counts()} collectives, not {len(ledger.sent)}")
    expected = block(task.model, weights, weights["embedding"].to(torch.float32)[tokens])
    error = furthest(out.full_tensor().flatten(2), expected)
    return {"sent": _from_all(ledger.sent), "error": error}


def _from_all(sent: list[Sent]) -> list[list[dict[str, Any]]]:
    every: list[list[dict[str, Any]]] = [[] for _ in range(CHIPS)]
    dist.all_gather_object(every, [asdict(each) for each in sent])
    return every


if __name__ == "__main__":
    main()
