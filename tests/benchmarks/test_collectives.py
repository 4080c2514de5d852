"""What chips send by the plan is what eight processes of PyTorch send, and the check can fail."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from benchmarks.collectives import CUBE, LONG, MODELS, SPLITS, formula, measure, render, shape_of, tasks
from benchmarks.collectives_ledger import Ledger
from benchmarks.collectives_task import Task
from prefold.plan.chip.chips import find_chip
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import Fold
from prefold.plan.cost.terms import layer_bytes
from prefold.plan.cost.workload import Workload
from tests.conftest import asked_for, some

SERIAL, PARALLEL = MODELS["serial, plain, multihead"], MODELS["parallel, gated, multiquery"]
TOKENS = SERIAL.batch * SERIAL.length
STORED, ACTIVE = 2, 4
TOLERANCE = 1e-5
SMALL = [
    *(Task(SERIAL, CUBE, *split, folded=False) for split in SPLITS if split[1] == "head"),
    *(Task(PARALLEL, CUBE, *split, folded) for split in SPLITS for folded in (False, True)),
    Task(SERIAL, LONG, "2d-ws", "head", folded=True),
]
BROKEN = Task(SERIAL, CUBE, "2d-ws", "head", folded=False)
FAULTS = [replace(BROKEN, fault=fault) for fault in ("gather", "shard")]
Row = dict[str, Any]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[Task, list[Row]]:
    asked = [*(task for task in SMALL if task in asked_for(request, "task")), *FAULTS]
    rows = measure(asked, limit=300)
    return {task: [row for row in rows if row["case"] == case] for case, task in enumerate(asked)}


def name(task: Task) -> str:
    kind = "parallel" if task.model.parallel else "serial"
    return f"{kind}-{task.layout}-{task.attention}-{'folded' if task.folded else 'source'}-{task.mesh[0]}"


def left_out(task: Task, part: str) -> float:
    """Bytes that a chip sends, and the plan does not count."""
    return norms(task) if part == "norm" else 0


def norms(task: Task) -> float:
    """A sum of squares for each token, all-reduced over x, where a chip has a part of E."""
    count = (1 if task.model.parallel else 2) - task.folded
    return count * 2 * TOKENS * ACTIVE * ends(task.mesh[0]) if task.layout == "2d-ws" else 0


def ends(chips: int) -> float:
    return (chips - 1) / chips


@pytest.mark.parametrize("task", some(SMALL, SMALL[0], SMALL[-1]), ids=name)
def test_every_part_sends_what_the_plan_says_and_what_it_is_known_to_leave_out(found, task):
    rows = {row["part"]: row for row in found[task]}
    assert rows.keys() >= {part for part, sent in formula(task).items() if sent}
    for part, row in rows.items():
        assert row["counted"] == pytest.approx(row["formula"] + left_out(task, part), abs=1e-6), part
        assert row["equal"] == (left_out(task, part) == 0), part


@pytest.mark.parametrize("task", some(SMALL, SMALL[0], SMALL[-1]), ids=name)
def test_the_block_on_chips_returns_what_it_returns_on_one(found, task):
    assert all(row["error"] < TOLERANCE for row in found[task])


def test_a_gather_too_many_is_seen_in_the_bytes(found):
    parts = {row["part"]: row for row in found[FAULTS[0]]}
    more = TOKENS * SERIAL.hidden * ACTIVE * ends(8)
    for part in ("attention", "FFN"):
        assert not parts[part]["equal"]
        assert parts[part]["counted"] == parts[part]["formula"] + more
    assert parts["FFN"]["error"] < TOLERANCE


def test_a_matrix_on_the_wrong_chips_is_seen_in_the_result(found):
    rows = found[FAULTS[1]]
    assert all(row["error"] > 0.1 for row in rows)
    assert all(row["equal"] for row in rows if row["part"] != "norm")


@pytest.mark.parametrize("planned", tasks(), ids=lambda task: f"{list(MODELS.values()).index(task.model)}-{name(task)}")
def test_the_parts_are_all_that_the_plan_counts_for_a_layer(planned):
    workload = Workload("prefill", planned.model.batch, planned.model.length, "bf16", activations="fp32")
    fold = Fold() if planned.folded else None
    case = Case(
        shape_of(planned.model),
        find_chip("tpu-v4"),
        Mesh(*planned.mesh),
        workload,
        planned.layout,
        planned.attention,
        fold,
    )
    assert sum(formula(planned).values()) == pytest.approx(layer_bytes(case, exact=True))


def test_a_page_says_what_is_not_equal_and_why(found):
    page = render([row for task in found if not task.fault for row in found[task]])
    cells = [
        line.split(" | ") for line in page.splitlines() if line.startswith("| serial") or line.startswith("| para")
    ]
    unequal = {line[4] for line in cells if line[7] == "**no**"}
    assert unequal == {"norm"}
    assert "- Norms." in page
    assert "there is no reason here" not in page


def test_a_page_knows_no_reason_for_a_gather_too_many(found):
    page = render(found[FAULTS[0]])
    assert "**0 of 2 parts" in page
    assert "there is no reason here" in page


@pytest.mark.parametrize(
    ("asked", "limit", "message"),
    [([replace(BROKEN, mesh=(3, 3, 1))], 100, "ended with 1:\n.*9 ranks"), (tasks(), 5, "ended with no result in 5 s")],
    ids=["error", "too late"],
)
def test_processes_that_fail_are_reported_and_none_stays(asked, limit, message):
    before = workers()
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        measure(asked, limit=limit)
    until = time.monotonic() + 10
    while workers() - before and time.monotonic() < until:
        time.sleep(0.1)
    assert not workers() - before


def workers() -> set[int]:
    found = psutil.process_iter(["pid", "cmdline", "status"])
    return {
        each.pid
        for each in found
        if "benchmarks.collectives_worker" in (each.info["cmdline"] or [])
        and each.info["status"] != psutil.STATUS_ZOMBIE
    }


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_collective_that_is_not_counted_is_an_error():
    with Ledger() as ledger, ledger.part("any"):
        dist.all_gather_into_tensor(torch.empty(2), torch.ones(2))
        with pytest.raises(ValueError, match="broadcast_"):
            dist.broadcast(torch.ones(2), 0)
    assert [(sent.part, sent.kind, sent.over, sent.bytes) for sent in ledger.sent] == [("any", "all-gather", 1, 0)]
