"""The machine as a chip: rates that were measured, kept, and measured again when they no longer hold."""

import json
from pathlib import Path

import pytest

from prefold.plan import Factors, Workload, find_chip, find_shape, mesh_of, plan_layouts
from prefold.plan.chip import rates
from prefold.plan.cost.fold import modules_gone
from prefold.plan.model.config import shape_from_config
from prefold.plan.this_machine import this_chip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where rates are kept; what is measured is kept small, since only that it is measured matters here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"_ROWS": 256, "_WIDTH": 64, "_SQUARE": 64, "_ROUNDS": 1, "_STEPS": 2, "_FILE_ROWS": 512}
    models = {"_NARROW": rates._Small(3, 64), "_WIDE": rates._Small(2, 256)}
    for name, size in (sizes | models).items():
        monkeypatch.setattr(rates, name, size)
    return tmp_path / "prefold" / "this-machine.json"


def test_rates_are_measured_once_and_again_when_asked_for(cache: Path):
    first = this_chip()
    kept = cache.read_text()
    assert this_chip() == first
    assert cache.read_text() == kept
    this_chip(refresh=True)
    assert cache.read_text() != kept


@pytest.mark.parametrize("fault", ["not JSON", "{}", "other threads"])
def test_rates_that_do_not_hold_are_measured_anew(cache: Path, fault: str):
    chip, _ = this_chip()
    said = json.loads(cache.read_text()) | {"memory_bandwidth": 1.0, "threads": -1}
    cache.write_text(json.dumps(said) if fault == "other threads" else fault)
    again, _ = this_chip()
    assert again.memory_bandwidth > 1.0
    assert chip.memory_bytes == again.memory_bytes


def test_a_plan_for_it_counts_what_steps_and_layers_cost_besides(cache: Path):
    chip, factors = this_chip()
    assert chip.name == "this"
    assert min(chip.peak["bf16"], chip.peak["fp32"], chip.memory_bandwidth, chip.disk_bandwidth) > 0
    assert min(factors.step, factors.layer, factors.call) >= 0
    assert 0 < factors.memory <= 1
    shape, mesh = find_shape("pythia-70m"), mesh_of(chip, 1)
    chosen = plan_layouts(shape, chip, mesh, Workload("decode", 1, 64), calibrations=(factors,)).chosen
    assert chosen.calibrated_seconds is not None
    besides = factors.step + shape.num_layers * factors.layer
    assert besides + chosen.ideal_seconds <= chosen.calibrated_seconds
    assert chosen.calibrated_seconds <= besides + chosen.ideal_sum_seconds / factors.memory
    assert "measured on this machine" in chip.source["peak"]


def test_what_explains_the_small_models_steps_is_found_again():
    """Steps that were calculated from rates give those rates back, and a fold's calls with them."""
    step, layer, call, bandwidth, share = 2e-4, 1.5e-4, 8e-6, 30e9, 0.8
    seconds = {
        small: step + small.layers * (layer + small.layer_bytes / (share * bandwidth))
        for small in (rates._NARROW, rates._WIDE)
    }
    small = {each: step + each.layers * 1e-4 for each in (rates._FEW, rates._MANY)}
    gone = {rates._FOLDED: small[rates._MANY] - rates._GONE * call}
    found = rates._explained(seconds | small | gone, bandwidth)
    expected = {"memory_bandwidth": bandwidth, "memory_share": share, "step": step, "layer": layer, "call": call}
    assert found == pytest.approx(expected)


def test_calls_that_run_ahead_of_an_accelerator_count_only_where_they_take_longer():
    shape, mesh = find_shape("pythia-70m"), mesh_of(find_chip("h100"), 1)
    slow, fast = (Factors(1, 1, 1, 0, 8, step=1e-6, layer=layer, ahead=True) for layer in (1e-3, 1e-9))
    for factors, expected in ((slow, 1e-6 + shape.num_layers * 1e-3), (fast, None)):
        found = plan_layouts(shape, find_chip("h100"), mesh, Workload("decode", 1, 64), calibrations=(factors,)).chosen
        assert found.calibrated_seconds == pytest.approx(expected or found.ideal_seconds, rel=0.1)


def test_modules_that_a_fold_leaves_out_are_counted_as_the_small_models_are():
    config = {"model_type": "gpt_neox", "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    shape = shape_from_config(config | {"hidden_size": 64, "intermediate_size": 256}, gated=False)
    assert modules_gone(shape) == rates._GONE


def test_the_load_is_kept_with_the_rates(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rates, "_load", lambda: 1e6)
    assert "the machine was busy" in this_chip()[0].note
    assert json.loads(cache.read_text())["load"] == 1e6
    monkeypatch.setattr(rates, "_load", lambda: 0.0)
    assert "the machine was busy" in this_chip()[0].note
    assert this_chip(refresh=True)[0].note == ""
