"""What a pass costs in each layout, and which one is chosen."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.plan import (
    Case,
    Estimate,
    Factors,
    Fold,
    Infeasible,
    Mesh,
    Workload,
    find_chip,
    find_shape,
    mesh_of,
    mfu,
    plan_layouts,
    terms_of,
)
from prefold.plan.cost.fold import reads_gone, row_bytes
from prefold.plan.cost.layouts import LAYOUTS
from prefold.plan.cost.terms import flops, head_flops, layer_bytes, sent_bytes, weight_bytes_read
from prefold.plan.estimate import choose

ONE, CUBE = Mesh(1, 1, 1), Mesh(4, 4, 4)
LLAMA, PYTHIA, PALM, MIXTRAL = map(find_shape, ("llama3-8b", "pythia-6.9b", "palm-540b", "mixtral-8x7b"))
H100, TPU, DESKTOP, MI300X = map(find_chip, ("h100", "tpu-v4", "desktop-ddr5", "mi300x"))
STEP = Workload("decode", 4, 1000)
KEYS = {
    "ffn_layout",
    "attention_layout",
    "ideal_seconds",
    "calibrated_seconds",
    "mfu",
    "chip_seconds_per_token",
    "memory_bytes_per_chip",
    "fits",
    "bound",
}


def case(shape=LLAMA, chip=H100, mesh=ONE, workload=STEP, layout="1d-ws", sharding="head", fold=None):
    return Case(shape, chip, mesh, workload, layout, sharding, fold)


def test_compute_is_two_operations_for_each_active_weight_and_token():
    assert flops(case()) == 2 * LLAMA.active_weights * 4
    assert terms_of(case()).compute == flops(case()) / 989e12
    assert flops(case(MIXTRAL)) == 2 * MIXTRAL.active_weights * 4


def test_weights_and_cache_cross_memory_once():
    terms = terms_of(case())
    assert terms.weights == 2 * LLAMA.active_weights / 3350e9
    assert terms.kv == 4 * 1000 * 131072 / 3350e9


def test_experts_are_read_as_tokens_choose_them():
    one, many = (weight_bytes_read(case(MIXTRAL, workload=replace(STEP, batch=batch))) for batch in (1, 4096))
    assert one == pytest.approx(2 * MIXTRAL.active_weights)
    assert many == pytest.approx(2 * (MIXTRAL.weights - MIXTRAL.head_weights))


def test_an_ideal_time_has_the_fewest_experts_and_a_sum_their_mean():
    terms = terms_of(case(MIXTRAL, workload=replace(STEP, batch=32)))
    assert terms.least_memory == pytest.approx(2 * MIXTRAL.active_weights / 3350e9 + terms.kv + terms.rows)
    assert terms.lower == terms.least_memory
    assert terms.upper == pytest.approx(terms.arithmetic + terms.memory)
    assert terms.weights == weight_bytes_read(case(MIXTRAL, workload=replace(STEP, batch=32))) / 3350e9
    assert terms_of(case(MIXTRAL, workload=replace(STEP, batch=1))).spared == pytest.approx(0, abs=1e-9)
    assert terms_of(case(LLAMA)).spared == 0


@pytest.mark.parametrize(("dtype", "size"), [("int8", 0.5), ("int4", (0.5 + 2.5 / 128) / 2)])
def test_smaller_weights_load_faster_and_compute_as_before(dtype, size):
    """Section 3.6: weights alone are smaller, and so is what gathering them sends."""
    small = replace(STEP, batch=64, weights=dtype)
    large = 2 * PALM.head_weights
    old, new = (terms_of(case(PALM, TPU, CUBE, w, "2d-ws")) for w in (replace(STEP, batch=64), small))
    assert (new.compute, new.communication) == (old.compute, old.communication)
    old_bytes, new_bytes = (each.weights * 64 * 1200e9 - large for each in (old, new))
    assert new_bytes == pytest.approx(size * old_bytes)
    gathered = [terms_of(case(PALM, TPU, CUBE, w, "wg-xyz", "batch")) for w in (replace(STEP, batch=64), small)]
    assert gathered[1].communication == pytest.approx(size * gathered[0].communication)


def test_layers_of_fp8_are_multiplied_at_its_rate_and_the_head_is_not():
    prefill = Workload("prefill", 8, 4096, weights="fp8")
    layers = 2 * (LLAMA.active_weights - LLAMA.head_weights) * prefill.tokens
    assert terms_of(case(workload=prefill)).compute == pytest.approx(layers / 1979e12 + head_flops(case()) * 2 / 989e12)
    assert terms_of(case(chip=TPU, workload=prefill)).compute == pytest.approx(flops(case(workload=prefill)) / 275e12)
    plain = terms_of(case(workload=replace(prefill, weights="bf16"))).compute
    assert terms_of(case(workload=replace(prefill, weights="fp4"))).compute == plain


def test_a_prefill_asks_the_head_for_the_last_token_of_each_prompt():
    prefill = Workload("prefill", 8, 4096)
    every = replace(prefill, all_logits=True)
    assert flops(case(workload=every)) == 2 * LLAMA.active_weights * 8 * 4096
    assert flops(case(workload=every)) - flops(case(workload=prefill)) == 2 * LLAMA.head_weights * 8 * 4095
    assert flops(case(workload=replace(STEP, all_logits=True))) == flops(case())


def test_the_bounds_are_the_largest_term_and_the_sum():
    terms = terms_of(case(PALM, TPU, CUBE, replace(STEP, batch=512), "2d-ws", "batch"))
    assert terms.lower == terms.arithmetic
    assert terms.upper == pytest.approx(terms.arithmetic + terms.memory + terms.communication)


@pytest.mark.parametrize(
    ("setup", "bound"),
    [
        (case(), "weights"),
        (case(workload=Workload("prefill", 8, 4096)), "compute"),
        (case(workload=Workload("decode", 256, 8192)), "kv"),
        (case(PALM, TPU, CUBE, replace(STEP, batch=64), "wg-xyz", "batch"), "communication"),
        (case(workload=Workload("prefill", 1, 10_000_000)), "attention"),
        (case(PYTHIA, replace(H100, disk_bandwidth=1e6), fold=Fold("disk")), "rows"),
    ],
)
def test_the_term_that_bounds_is_named(setup, bound):
    assert terms_of(setup).bound == bound


def test_mfu_is_that_of_the_nominal_size():
    setup = case(PALM, TPU, CUBE, Workload("prefill", 512, 2048, all_logits=True), "wg-xyz", "batch")
    assert mfu(setup, 85.2) == pytest.approx(2 * 540e9 * 512 * 2048 / (64 * 275e12 * 85.2))
    assert mfu(case(), 1) == 2 * LLAMA.active_weights * 4 / 989e12


def test_no_pass_uses_more_than_all_of_the_peak():
    """A head that multiplies last tokens alone is no operation of all others."""
    prompt = Workload("prefill", 2, 512)
    assert Estimate(case(find_shape("palm-8b"), MI300X, ONE, prompt)).mfu <= 1


def test_cost_is_chips_by_seconds_for_each_token():
    found = Estimate(case(PALM, TPU, CUBE, STEP, "2d-ws"))
    assert found.chip_seconds_per_token == 64 * found.ideal_seconds / 4


def test_a_chip_that_nobody_measured_has_no_calibrated_time():
    (found,) = plan_layouts(LLAMA, MI300X, ONE, STEP).estimates
    assert (found.calibrated_seconds, found.basis, found.seconds) == (None, "ideal", found.ideal_seconds)
    assert found.uncalibrated == "no measurements of mi300x"


def test_factors_of_the_callers_own_are_used():
    own = Factors(0.5, 0.5, 0.5, 0, 100)
    (found,) = plan_layouts(LLAMA, H100, ONE, STEP, calibrations=(own,)).estimates
    assert found.basis == "calibrated"
    assert found.calibrated_seconds == pytest.approx(2 * found.ideal_seconds)


def test_the_calibrated_time_is_above_the_lower_bound():
    for found in plan_layouts(PALM, TPU, CUBE, replace(STEP, batch=64)).estimates:
        assert found.calibrated_seconds > found.ideal_seconds


def test_every_layout_has_the_keys_that_others_rely_on():
    for found in plan_layouts(PALM, TPU, CUBE, STEP).estimates:
        figures = json.loads(json.dumps(found.as_json()))
        assert figures.keys() >= KEYS
        assert figures["ffn_layout"] in LAYOUTS


def test_layouts_come_the_cheapest_first_and_the_impossible_with_a_reason():
    found = plan_layouts(PALM, TPU, CUBE, replace(STEP, batch=2))
    assert [each.rank for each in found.estimates] == sorted(each.rank for each in found.estimates)
    assert {each.case.layout for each in found.estimates} == {"1d-ws", "2d-ws"}
    assert any("wg-xyz needs a sequence for each of the 64 chips" in why for why in found.refused)
    assert any("batch-sharded attention" in why for why in found.refused)


def test_a_layout_that_does_not_fit_is_shown_and_not_chosen():
    found = plan_layouts(PALM, TPU, CUBE, Workload("decode", 512, 2048))
    too_large = [each for each in found.estimates if not each.memory.fits]
    assert too_large
    assert all(each.as_json()["missing_bytes_per_chip"] > 0 for each in too_large)
    assert found.chosen.memory.fits


def test_where_nothing_fits_the_least_too_large_is_chosen():
    found = plan_layouts(find_shape("llama3-70b"), H100, ONE, STEP)
    assert not found.chosen.memory.fits
    assert found.chosen.memory.missing == min(each.memory.missing for each in found.estimates)
    assert found.fastest == found.chosen


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(Infeasible):
        choose([])


def test_a_case_that_cannot_be_shared_out_is_refused():
    with pytest.raises(Infeasible):
        terms_of(case(PALM, TPU, CUBE, STEP, "wg-xyz", "batch"))


@pytest.mark.parametrize(("chip", "layout"), [("tpu-v4", "2d-ws"), ("h100", "1d-ws")])
def test_1d_is_chosen_behind_a_switch_and_2d_on_a_torus(chip, layout):
    """On 8 chips 1D sends less; a torus keeps weights where a prefill may gather them (sections 3.2.3 and 4.1)."""
    found = find_chip(chip)
    planned = plan_layouts(find_shape("palm-62b"), found, mesh_of(found, 8), Workload("decode", 64, 2048))
    assert planned.chosen.case.layout == layout
    assert planned.fastest.case.layout == "1d-ws"


def test_behind_a_switch_a_collective_starts_once():
    gpu = find_chip("a100-80gb")
    shape = find_shape("mt-nlg-530b")
    starts = {terms_of(case(shape, gpu, mesh, STEP)).phases for mesh in (Mesh(1, 16, 1), Mesh(2, 2, 4))}
    assert starts == {4 * shape.num_layers}
    assert terms_of(case(shape, TPU, CUBE, STEP)).phases == 3 * 4 * shape.num_layers


@pytest.mark.parametrize("placement", ["device", "host", "disk"])
@pytest.mark.parametrize("shape", [LLAMA, PYTHIA, MIXTRAL, find_shape("deepseek-v3")])
def test_a_fold_saves_reads_and_operations_and_reads_rows(shape, placement):
    source, folded = case(shape), case(shape, fold=Fold(placement))
    assert weight_bytes_read(source) - weight_bytes_read(folded) == pytest.approx(2 * reads_gone(shape, 4))
    assert flops(folded) < flops(source)
    bandwidth = {"device": 3350e9, "host": 64e9, "disk": 3.7e9}[placement]
    terms = terms_of(folded)
    rows = 4 * row_bytes(shape, Fold()) / bandwidth
    assert (terms.rows, terms.link_rows) == pytest.approx((rows, 0) if placement == "device" else (0, rows))


def test_rows_of_a_table_in_the_chips_own_host_memory_come_from_memory():
    terms = terms_of(case(PYTHIA, DESKTOP, fold=Fold("host")))
    assert terms.link_rows == 0 < terms.rows


def test_a_folded_first_layer_sends_less_and_no_other_layer_does():
    source, folded = (case(PALM, TPU, CUBE, STEP, "2d-ws", fold=fold) for fold in (None, Fold()))
    saved = layer_bytes(source) - layer_bytes(folded)
    assert saved > 0
    assert sent_bytes(source) - sent_bytes(folded) == pytest.approx(saved)
    assert layer_bytes(folded, 1) == layer_bytes(source)


def test_the_exact_volume_is_less():
    assert sent_bytes(case(PALM, TPU, CUBE, STEP, "2d-ws"), exact=True) < sent_bytes(
        case(PALM, TPU, CUBE, STEP, "2d-ws")
    )


def test_chips_without_links_cannot_send():
    apart = replace(H100, link_bandwidth=0)
    assert terms_of(case(chip=apart)).communication == 0
    assert terms_of(case(chip=apart, mesh=Mesh(1, 2, 1))).communication == float("inf")


def test_the_plan_needs_no_torch():
    code = "import sys, prefold.plan; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


CASES = st.builds(
    lambda name, phase, batch, context, layout, sharding, fold: (
        find_shape(name),
        Workload(phase, 64 * batch, context),
        layout,
        sharding,
        fold,
    ),
    name=st.sampled_from(["palm-62b", "mt-nlg-530b", "llama3-8b", "mixtral-8x7b", "deepseek-v3", "whisper-tiny"]),
    phase=st.sampled_from(["prefill", "decode"]),
    batch=st.integers(1, 32),
    context=st.integers(1, 1 << 16),
    layout=st.sampled_from(LAYOUTS),
    sharding=st.sampled_from(["head", "batch"]),
    fold=st.none() | st.builds(Fold, st.sampled_from(["device", "host", "disk"])),
)


@given(each=CASES)
def test_more_chips_never_raise_weight_time(each):
    shape, workload, layout, sharding, fold = each
    times = [
        terms_of(case(shape, TPU, mesh, workload, layout, sharding, fold)).weights
        for mesh in (ONE, Mesh(2, 2, 2), Mesh(2, 4, 2), CUBE)
    ]
    assert times == sorted(times, reverse=True)


@given(each=CASES)
def test_no_term_is_negative_and_the_bounds_are_in_order(each):
    shape, workload, layout, sharding, fold = each
    found = Estimate(case(shape, TPU, CUBE, workload, layout, sharding, fold))
    terms = found.terms
    assert min(vars(replace(terms)).values()) >= 0
    assert 0 < found.ideal_seconds <= found.ideal_sum_seconds
    assert found.ideal_sum_seconds - terms.spared <= 4 * found.ideal_seconds * (1 + 1e-12)
    assert getattr(terms, terms.bound) > 0 or terms.link_rows > 0
    # A folded model does less than its MFU counts, which is that of the source's weights.
    assert 0 < found.mfu <= 1 or shape.nominal or fold
