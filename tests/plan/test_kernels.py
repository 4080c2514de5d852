"""Passes as sums of kernels: which a rank runs, and what a chip reaches in them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.plan import (
    Estimate,
    Fold,
    Workload,
    calibrations_of,
    find_chip,
    find_shape,
    mesh_of,
    plan_layouts,
    presets,
)
from prefold.plan.calibration import Kernel, known_kernels, nearest
from prefold.plan.cost.case import Case
from prefold.plan.cost.kernels import all_reduces, attention, matmuls
from prefold.plan.cost.terms import terms_of

H100, A100, PHONE = map(find_chip, ("h100", "a100-80gb", "phone"))
STEP = Workload("decode", 8, 1000)
# Models whose weights are all multiplied by every token; those of experts, by the experts that a step reads.
DENSE = [name for name, shape in presets().items() if shape.experts is None and not shape.cross]


def case(name: str, ranks: int = 1, workload: Workload = STEP, fold: Fold | None = None, chip=H100) -> Case:
    return Case(find_shape(name), chip, mesh_of(chip, ranks), workload, "1d-ws", "head", fold)


def seconds(name: str, ranks: int = 1, chip=H100, **changes) -> float:
    return Estimate(case(name, ranks, replace(STEP, **changes), chip=chip), calibrations_of(chip)).calibrated_seconds


@pytest.mark.parametrize("name", DENSE)
def test_the_products_of_one_rank_are_all_weights_of_the_model(name: str):
    """But for a state's convolution, which is no product."""
    read = sum(each.count * each.weights for each in matmuls(case(name)))
    assert read == pytest.approx(find_shape(name).weights_read(8), rel=2e-3)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v3", "qwen3.5-397b-a17b"])
def test_experts_are_read_as_tokens_choose_them(name: str):
    read = sum(each.count * each.weights for each in matmuls(case(name)))
    assert read == pytest.approx(find_shape(name).weights_read(8), rel=2e-3)
    assert any(each.experts for each in matmuls(case(name)))


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_the_products_evenly(ranks: int):
    one, shared = (sum(e.count * e.weights for e in matmuls(case("llama3-8b", n))) for n in (1, ranks))
    assert shared == pytest.approx(one / ranks)


def test_heads_of_keys_and_values_are_copied_where_ranks_are_more():
    shape = find_shape("qwen3.5-397b-a17b")
    (inner, *_) = matmuls(case("qwen3.5-397b-a17b", 8))
    assert inner.n == shape.asking_width / 8 + shape.key_value_width / 2


@pytest.mark.parametrize("name", ["pythia-6.9b", "llama3-8b", "deepseek-v3", "mixtral-8x7b", "qwen3.5-397b-a17b"])
def test_a_table_replaces_products_of_the_first_layer(name: str):
    plain, folded = (sum(e.count * e.weights for e in matmuls(case(name, fold=fold))) for fold in (None, Fold()))
    gone = plain - folded
    ideal = [terms_of(case(name, fold=fold)).weights * H100.memory_bandwidth / 2 for fold in (None, Fold())]
    assert gone == pytest.approx(ideal[0] - ideal[1], rel=2e-3)


def test_a_serial_layer_has_two_all_reduces_and_a_parallel_one_has_one():
    assert all_reduces(case("llama3-8b", 2)) == (64, 8 * 4096 * 2)
    assert all_reduces(case("pythia-6.9b", 2))[0] == 32
    assert all_reduces(case("llama3-8b", 1))[0] == 0


def test_attention_reads_the_cache_of_a_rank():
    layers, moved, _, outputs = attention(case("llama3-8b", 4))
    assert layers == 32
    assert moved - outputs == pytest.approx(8 * 1000 * 2 * 2 * 128 * 2 / H100.memory_bandwidth)


@given(
    moved=st.floats(1e-9, 1),
    computed=st.floats(1e-9, 1),
    memory=st.floats(0.1, 1),
    arithmetic=st.floats(0.1, 1),
    overlap=st.floats(1, 8),
)
def test_a_kernel_is_between_the_larger_part_and_the_sum(moved, computed, memory, arithmetic, overlap):
    found = Kernel(1e-6, memory, arithmetic, overlap).seconds(moved, computed)
    parts = moved / memory, computed / arithmetic
    assert max(parts) * (1 - 1e-9) <= found - 1e-6 <= sum(parts) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["a100-80gb", "h100", "h200", "b200", "rtx-4090"])
@pytest.mark.parametrize("model", ["llama3-8b", "llama3.1-70b", "mixtral-8x7b"])
def test_a_calibrated_time_is_above_the_ideal_one(name: str, model: str):
    chip = find_chip(name)
    for ranks in (1, 2, 4, 8):
        for phase in ("decode", "prefill"):
            found = Estimate(case(model, ranks, replace(STEP, phase=phase), chip=chip), calibrations_of(chip))
            assert found.calibrated_seconds > found.ideal_seconds


def test_more_chips_of_a_node_make_a_large_model_faster():
    """The factors of FasterTransformer on 16 and 32 A100 said the contrary."""
    found = [seconds("llama3-8b", ranks, A100, batch=1, context=200) for ranks in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)


def test_a_calibration_returns_why_it_does_not_hold():
    kernels = known_kernels()["hopper"]
    assert "tensor parallelism" in kernels.beyond(replace(case("llama3-8b", 8), layout="2d-ws"))
    assert "8 chips of one node" in kernels.beyond(case("llama3-8b", 16))
    assert "cached tokens" in kernels.beyond(case("llama3-8b", 1, replace(STEP, batch=4096, context=1 << 20)))
    assert "tokens per pass" in kernels.beyond(case("llama3-8b", 1, Workload("prefill", 64, 1 << 20)))
    assert kernels.beyond(case("llama3-8b", 8)) == ""


def test_layouts_with_a_calibrated_time_come_first_and_others_have_the_reason():
    found = plan_layouts(find_shape("llama3.1-70b"), H100, mesh_of(H100, 8), replace(STEP, batch=64))
    first, *others = found.estimates
    assert found.chosen is first
    assert (first.case.layout, first.case.sharding, first.uncalibrated) == ("1d-ws", "head", "")
    assert all("tensor parallelism" in each.uncalibrated for each in others)


def test_factors_of_many_chips_do_not_hold_for_a_node():
    many = plan_layouts(find_shape("mt-nlg-530b"), A100, mesh_of(A100, 32), replace(STEP, batch=64, weights="int8"))
    few = plan_layouts(find_shape("llama3-8b"), A100, mesh_of(A100, 8), STEP)
    assert "FasterTransformer" in many.chosen.calibration.source
    assert few.chosen.calibration is known_kernels()["ampere"]


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("rtx-4090", "h100 and h200"),
        ("rtx-3090", "a100-80gb"),
        ("t4", "a100-80gb"),
        ("b300", "b200"),
        ("l40s", "h100 and h200"),
    ],
)
def test_an_unseen_chip_is_predicted_by_the_nearest_generation_and_says_so(name: str, measured: str):
    chip = find_chip(name)
    (found,) = calibrations_of(chip)
    assert found.source.startswith(f"predicted from its data sheet by what {measured} reach: ")


def test_chips_of_another_family_have_no_kernels():
    assert calibrations_of(PHONE) == ()
    assert nearest(PHONE, known_kernels()) is None
