"""Fits of kernels and engines: numbers that made the times are found again, and those that ship are today's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import kernel_times as fits
from benchmarks.published import PUBLISHED, estimate_of
from benchmarks.served import Checked, Fit, fit, fitting, held_out, ideal_share, parts_of, predicted, read_rows
from prefold.plan.calibration import Engine, Kernel, engines, known_kernels

MEASURED = Path(__file__).parents[2].parent / "shared" / "reference" / "measured"
HEAD = "model_path,system,backend,precision,isl,osl,concurrency,tp_size,attention_dp_size,moe_ep_size,ttft_ms,tpot_ms"
measured = pytest.mark.skipif(not MEASURED.is_dir(), reason="the measured rows are not part of the repository")


def rows_of(tmp_path: Path) -> list:
    """A few workloads of three engines on two generations; their times are replaced."""
    lines = [
        f"{model},{chip}_sxm,{engine},{types},{prompt},1024,{count},{ranks},1,1,1,1"
        for model, types in (("meta-llama/Llama-3.1-70B", "fp8"), ("MiniMaxAI/MiniMax-M2.5", "fp8"))
        for chip in ("h200", "b200")
        for engine in ("vllm", "sglang", "trtllm")
        for prompt in (1024, 8192)
        for count in (4, 16, 64)
        for ranks in (4, 8)
    ]
    file = tmp_path / "serving.csv"
    file.write_text("\n".join([HEAD, *lines]) + "\n")
    return read_rows(file)


MADE = Fit(
    {
        "vllm": Engine(0.9, 2e-3, 0.05, 0.1),
        "sglang": Engine(1.1, 4e-3, 0.2, 0.2),
        "tensorrt-llm": Engine(0.8, 1e-3, 0.1, 0.05),
    },
    {"hopper": 1.5, "blackwell": 0.9},
)


def timed(rows: list) -> list:
    checked = predicted(MADE, rows, [parts_of(row) for row in rows])
    return [replace(each.row, tpot=each.tpot, ttft=each.ttft) for each in checked]


def test_a_fit_finds_the_engines_that_made_the_times(tmp_path: Path):
    rows = timed(rows_of(tmp_path))
    found = fit(rows, [parts_of(row) for row in rows])
    for name, engine in MADE.engines.items():
        one = found.engines[name]
        assert [one.kernels, one.step, one.accept, one.wait] == pytest.approx(
            [engine.kernels, engine.step, engine.accept, engine.wait], rel=0.02
        )
    assert found.experts == pytest.approx(MADE.experts, rel=0.02)


def test_rows_that_a_fit_has_not_seen_are_predicted(tmp_path: Path):
    found = held_out(timed(rows_of(tmp_path)), lambda row: row.model)
    assert max(abs(each.tpot_error) for each in found if "70B" in each.row.model) < 0.05


def test_rows_of_other_layouts_and_unknown_models_are_left_out(tmp_path: Path):
    file = tmp_path / "serving.csv"
    row = "meta-llama/Llama-3.1-70B,h100_sxm,vllm,fp8,1024,1024,4,4,1,1,1,1"
    others = [
        row.replace("4,1,1,1,1", "4,4,1,1,1"),
        row.replace("4,1,1,1,1", "4,1,8,1,1"),
        row.replace(",4,4,1", ",4,16,1"),
        row.replace("Llama-3.1-70B", "Llama-9"),
        row.replace("fp8", "int4"),
    ]
    file.write_text("\n".join([HEAD, row, *others]) + "\n")
    assert len(read_rows(file)) == 1


def test_an_error_is_negative_where_too_little_is_predicted(tmp_path: Path):
    row = replace(rows_of(tmp_path)[0], tpot=0.02, ttft=1.0)
    assert (Checked(row, 0.01, 2.0).tpot_error, Checked(row, 0.01, 2.0).ttft_error) == (-0.5, 1.0)


def test_a_kernel_is_found_by_the_times_that_it_makes():
    rng = np.random.default_rng(0)
    moved, computed, activations = 10 ** rng.uniform(-6, -3, (3, 400))
    real = Kernel(4e-6, 0.8, 0.6, 2.0, 0.5)
    found = fits._fit_kernel(moved, computed, activations, real.seconds(moved, computed, activations) * 1e3)
    assert found.values == pytest.approx((4e-6, 0.8, 0.6, 2.0, 0.5), rel=0.02)
    assert found.ninth < 0.01


@measured
def test_the_kernels_that_come_with_prefold_are_those_of_the_rows():
    for name, fresh in fits.fit_kernels(MEASURED, fits.VERSIONS).items():
        kept = known_kernels()[name]
        assert kept.source == fresh.source
        assert kept.products["bf16"].memory == pytest.approx(fresh.products["bf16"].memory, rel=1e-3)
        assert kept.decode.start == pytest.approx(fresh.decode.start, rel=1e-3)


@measured
def test_the_engines_that_come_with_prefold_are_those_of_the_rows():
    rows = fitting(read_rows(MEASURED / "serving.csv"))
    fresh = fit(rows, [parts_of(row) for row in rows])
    for name, kept in engines().items():
        assert kept.kernels == pytest.approx(fresh.engines[name].kernels, rel=1e-2)
        assert kept.step == pytest.approx(fresh.engines[name].step, rel=1e-2)


@measured
def test_no_served_workload_is_faster_than_the_ideal_one():
    rows = fitting(read_rows(MEASURED / "serving.csv"))
    assert min(ideal_share(row) for row in rows) > 0.98


def test_gpt_fasts_steps_on_one_node_are_met_and_grow_shorter_with_chips():
    rows = [
        row for row in PUBLISHED if (row.engine, row.shape, row.workload.weights) == ("gpt-fast", "llama2-7b", "bf16")
    ]
    found = [estimate_of(row).calibrated_seconds * 1e3 for row in rows]
    assert found == pytest.approx([row.milliseconds for row in rows], rel=0.15)
    assert found == sorted(found, reverse=True)
