"""The script for a GPU, as far as it runs without one: each part measures and writes, and none breaks another."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import __main__ as script
from benchmarks.gpu.exact import cases, ulps
from benchmarks.gpu.forest import FORESTS, forest, path_tokens
from benchmarks.gpu.layers import Layers, Work
from benchmarks.gpu.timed import attempt
from prefold.plan.chip.rates import Rates, here
from tests.tree.flattened import interpreter

ROOT = Path(__file__).parents[2]


def measured(name: str, folder: Path) -> list[dict[str, Any]]:
    file = folder / f"{name}.jsonl"
    script.measure_part(name, file, "cpu", quick=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def page(name: str, figures: list[dict[str, Any]], **others: list[dict[str, Any]]) -> str:
    return import_module(f"benchmarks.gpu.{name}").render({name: figures} | others)


def test_without_a_gpu_it_says_so_and_ends_well(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}  # which torch reads when it starts
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no GPU that runs CUDA: nothing was measured\n")
    assert not (tmp_path / "out").exists()


def test_kernels_tables_and_proofs_are_right(tmp_path: Path):
    pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")
    figures = measured("exact", tmp_path)
    assert [each for each in figures if not each["passed"]] == []
    assert {each["check"] for each in figures} == {"kernel", "rows", "verify", "logits"}
    fault = {"check": "kernel", "name": "a fault", "passed": False, "error": "no such thing"}
    written = page("exact", [*figures, fault])
    assert "Kernels: 3 of 4 cases agree with float64." in written
    assert "- **a fault**: no such thing" in written
    assert "Verified: 1 of 1 folds." in written


def test_cases_cover_types_head_layouts_windows_and_soft_caps():
    made = cases().values()
    assert {case.dtype for case in made} == {"float32", "float16", "bfloat16"}
    assert len({(case.heads, case.kv_heads, case.head_dim, case.width) for case in made}) > 6
    assert {case.window and case.window[0] for case in made} == {None, "sliding", "chunked"}
    assert {case.softcap for case in made} == {None, 3.0, 20.0}


def test_decoding_is_timed_against_the_ratio_of_bytes(tmp_path: Path):
    figures = measured("fold", tmp_path)
    assert [each["batch"] for each in figures] == [1, 8]
    for each in figures:
        assert set(each["seconds"]) == {f"{name}, {how}" for name in ("source", "folded") for how in ("eager", "graph")}
        assert each["reads"]["before"] > each["reads"]["after"]
        count, _, of = each["same_row"]["folded"].partition(" of ")
        assert count == of
    assert f"{figures[0]['ratios']['graph']['ratio']:.3f}" in page("fold", figures)


def test_a_repeated_step_says_the_same(tmp_path: Path):
    from benchmarks.gpu.fold import _QUICK, Step
    from benchmarks.shapes import save
    from benchmarks.timing import load

    step = Step(load(save(_QUICK, tmp_path)), 2)
    step()
    first = step.logits
    step()
    assert torch.equal(step.logits, first)


def test_trees_and_placements_are_timed(tmp_path: Path):
    pytest.importorskip("triton", reason="Triton is not installed: it is there for Linux alone")
    with interpreter() as process:
        for name in ("tree", "placement"):
            process.submit(script.measure_part, name, tmp_path / f"{name}.jsonl", "cpu", quick=True).result()
            figures = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
            assert [each["failed"] for each in figures if each.get("failed")] == []
            assert page(name, figures).count("\n| ---") == 2
    assert {each["placement"] for each in figures if each["kind"] == "model"} == {"device", "host", "disk"}


def test_predictions_stand_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device, version, threads = here()
    numbers = {name: 1e9 for name, kind in Rates.__annotations__.items() if kind in (float, int)}
    rates = Rates(**(numbers | {"device": device, "torch": version, "threads": threads, "memory_share": 0.5}))
    (tmp_path / "prefold").mkdir()
    (tmp_path / "prefold" / "this-machine.json").write_text(json.dumps(asdict(rates)))
    figures = measured("plan", tmp_path)
    assert figures[0]["chip"]["memory_bandwidth"] == 1e9
    seconds = {"source, eager": 2 * figures[1]["predicted"]}
    beside = [{"shape": figures[1]["shape"], "batch": 1, "seconds": seconds}]
    assert page("plan", figures, fold=beside).count("+100%") == 1


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found(tmp_path: Path):
    failed = script.run_part("tree", tmp_path, 100, ["--device", "nowhere", "--quick"])
    assert failed["state"].startswith("failed with 1: ")
    late = script.run_part("fold", tmp_path, 0.1, ["--device", "cpu", "--quick"])
    assert late["state"].startswith("ended after")
    figure = {"kind": "rates", "chip": {"memory_bandwidth": 1, "peak": {}, "host_bandwidth": 1, "disk_bandwidth": 1}}
    figure |= {"factors": {"memory": 1, "step": 0, "layer": 0}}
    written = script.render("a chip", {"tree": failed, "plan": late | {"figures": [figure]}})
    assert "## Tree\n\nNo figures.\n\nThis part failed with 1" in written
    assert "Memory 0 GB/s" in written


def test_what_cannot_be_timed_has_a_reason():
    def broken() -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    assert attempt(broken) == "RuntimeError: operation not permitted when stream is capturing"


@pytest.mark.parametrize(("number", "tokens", "factor"), [(5, 20480, 36.0), (6, 8000, 5.5), (7, 21120, 26.3758)])
def test_forests_are_those_that_were_published(number: int, tokens: int, factor: float):
    nodes, lengths = FORESTS[number]
    stretches = forest(nodes, lengths)
    assert sum(each.tokens for each in stretches) == tokens
    assert path_tokens(nodes, lengths) / tokens == pytest.approx(factor, abs=5e-5)
    assert sum(each.tokens * (each.high - each.low) for each in stretches) == path_tokens(nodes, lengths)


def test_bytes_are_those_of_llama_3_8b():
    work = Work((1, 16), (4000, 200))
    assert work.token_bytes * 32 == 131_072  # of all layers, as the published figures count them
    assert work.physical_bytes == (4000 + 16 * 200) * 4096
    assert work.expanded_bytes == 16 * 4200 * 4096
    assert Work((1, 64), (16000, 200)).layers(50 << 20) == 2


def test_each_branch_over_its_own_cache_is_attention_to_its_path():
    work = Work((1, 2, 4), (5, 3, 2), heads=4, kv_heads=2, head_dim=8)
    layers = Layers(work, 1, "cpu", torch.float32)
    path = [*range(5), *range(8, 11), *range(15, 17)]  # of the third leaf: the root, the second child, its first
    keys, values = (each[0][:, path].repeat_interleave(2, 0) for each in (layers.keys, layers.values))
    query = layers.query[0, 2][:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)[:, 0]
    assert torch.allclose(layers.by_branch()(0)[2], expected, atol=1e-6)


@given(st.floats(-1, 1, width=32), st.integers(0, 40))
def test_ulps_count_the_values_between(value: float, steps: int):
    one = torch.tensor([value])
    other = one
    for _ in range(steps):
        other = torch.nextafter(other, torch.tensor([torch.inf]))
    assert ulps(one, other).item() in (steps, steps - 1)  # zero is there twice
    assert ulps(one, other).item() == steps or value <= 0
