"""What `prefold plan` is given: a model's config, and this machine."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from prefold.plan.chip.rates import Rates, here
from tests.conftest import small_config

CONFIG = Path(__file__).parents[1] / "configs" / "pythia-6.9b.json"


def test_a_context_beyond_a_configs_positions_is_refused(prefold):
    ran = prefold("plan", CONFIG, "--hardware", "h100", "--context", "2048")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "has 2,048 positions (max_position_embeddings), and this decode needs 2,049" in ran.err
    assert prefold("plan", CONFIG, "--hardware", "h100", "--context", "2047").code == 0


def test_without_a_context_it_takes_what_there_are_positions_for(prefold, tmp_path: Path):
    small_config("gptj", n_positions=100).save_pretrained(tmp_path)
    for phase, context in (("decode", 99), ("prefill", 100)):
        told = json.loads(prefold("plan", tmp_path, "--hardware", "h100", "--phase", phase, "--json").out)
        assert told["workload"]["context"] == context
    assert json.loads(prefold("plan", "pythia-70m", "--hardware", "l4", "--json").out)["workload"]["context"] == 2048


@pytest.mark.parametrize("load", [0.0, 0.9, 2.13])
def test_a_machine_that_was_busy_is_told_with_every_plan(
    prefold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    figures = dict.fromkeys(("bf16", "fp32", "memory_bytes", "memory_bandwidth"), 1e12)
    more = dict.fromkeys(("host_bandwidth", "disk_bandwidth"), 1e9)
    times = dict.fromkeys(("step", "layer", "call"), 1e-6)
    rates = Rates(*here(), **figures, **more, **times, memory_share=0.5, load=load, cores=2)
    (tmp_path / "prefold").mkdir()
    (tmp_path / "prefold" / "this-machine.json").write_text(json.dumps(asdict(rates)))
    for _ in range(2):
        ran = prefold("plan", "pythia-70m", "--hardware", "this", "--json")
        assert (ran.code, json.loads(ran.out)["hardware"]) == (0, "this")
        busy = "the machine was busy when it was measured (load 2.1 on 2 cores): an idle one is faster; --refresh"
        assert (busy in ran.err) == (load > 1)
        assert ran.err.count("\n") == (load > 1)


def test_load_averages_need_not_exist(monkeypatch: pytest.MonkeyPatch):
    from prefold.plan.chip import rates

    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 0, 0))
    assert rates._load() == 2.5
    monkeypatch.delattr(os, "getloadavg")
    assert rates._load() == 0.0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch", "9" * 400], "batch: at most 1,000,000,000 sequences"),
        (["--context", "9" * 400], "context: at most 1,000,000,000 tokens"),
        (["--chips", "9" * 400], "chips: at most 1,000,000"),
        (["--mesh", "1000x1000x2"], "chips: at most 1,000,000"),
        (["--latency-target", "9" * 400 + "s"], "9999... of 400 digits is too large a number"),
    ],
)
def test_numbers_beyond_all_measure_are_refused_in_one_line(prefold, arguments: list[str], line: str):
    ran = prefold("plan", "pythia-70m", "--hardware", "tpu-v4", *arguments)
    assert (ran.code, ran.out, ran.err) == (2, "", f"prefold: {line}\n")


def test_a_bandwidth_of_many_digits_is_refused_by_its_name(prefold, tmp_path: Path):
    file = tmp_path / "mine.toml"
    told = dict.fromkeys(("memory_bandwidth", "link_bandwidth", "host_bandwidth", "disk_bandwidth"), "1 GB/s")
    told |= {"memory": "24 GB", "memory_bandwidth": "9" * 400 + " GB/s"}
    file.write_text('[mine]\npeak = {bf16 = "1 TFLOP/s"}\n' + "".join(f'{k} = "{v}"\n' for k, v in told.items()))
    ran = prefold("plan", "pythia-70m", "--hardware", file)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "memory_bandwidth: 9999... of 400 digits is too large a number" in ran.err


@pytest.mark.parametrize("field", ["num_local_experts", "sliding_window", "intermediate_size"])
def test_a_negative_field_is_refused_by_the_files_own_name(prefold, tmp_path: Path, field: str):
    config = json.loads(CONFIG.with_name("mixtral-8x7b.json").read_text()) | {field: -8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ran = prefold("plan", tmp_path, "--hardware", "l4")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert f"prefold: {field}: -8 is not a" in ran.err
