"""Several chips and batches: what is tried, what is worth a look, and what reaches a target."""

import json
import re
from dataclasses import replace

import pytest

from prefold.common.errors import UsageError
from prefold.common.units import spell_bytes, spell_seconds, spell_weights
from prefold.plan import Fold, Infeasible, Mesh, Workload, find_chip, find_shape, presets
from prefold.plan.advice import advise, table_for
from prefold.plan.page.plots import intensity, reached, roof_of
from prefold.plan.sweep import LARGEST, Space, Target, batches, fewest, meshes, pareto

TPU, H100, DESKTOP, MI300X = map(find_chip, ("tpu-v4", "h100", "desktop-ddr5", "mi300x"))
PALM, LLAMA = map(find_shape, ("palm-540b", "llama3-8b"))
STEP = Workload("decode", 1, 2048)
SLICE = Mesh(4, 4, 4)


def space(shape=PALM, chip=TPU, workload=STEP, tried=None, sizes=None) -> Space:
    return Space(shape, chip, workload, tried or meshes(chip), sizes or batches(workload.branches))


@pytest.fixture(scope="module")
def points():
    return space().points()


def test_batches_are_powers_of_two_and_what_lies_between_them():
    assert batches()[:8] == (1, 2, 3, 4, 6, 8, 12, 16)
    assert batches()[-1] == LARGEST
    assert list(batches()) == sorted(set(batches()))


def test_branches_stay_together():
    assert all(batch % 5 == 0 for batch in batches(5))
    assert batches(5)[:3] == (5, 10, 15)


def test_a_batch_that_was_asked_for_is_tried_too():
    assert {77, 6000} <= {*batches(also=77), *batches(also=6000)}


@pytest.mark.parametrize(
    ("chip", "counts"), [(TPU, [1, 8, 16, 32, 64, 128, 256]), (H100, [1, 2, 4, 8]), (DESKTOP, [1])]
)
def test_chips_are_tried_as_their_links_are_made(chip, counts):
    assert [mesh.chips for mesh in meshes(chip)] == counts


def test_the_fewest_chips_are_those_that_the_model_fits_on():
    assert fewest(PALM, TPU, STEP) == Mesh(4, 4, 4)
    assert fewest(PALM, TPU, replace(STEP, weights="int8")) == Mesh(4, 2, 4)
    assert fewest(LLAMA, H100, STEP).chips == 1


def test_where_nothing_fits_the_fewest_are_the_most():
    assert fewest(PALM, H100, STEP).chips == 8
    assert fewest(PALM, DESKTOP, STEP).chips == 1


def test_a_space_has_a_point_for_each_mesh_and_batch(points):
    assert len(points) == len(meshes(TPU)) * len(batches())
    assert {each.case.workload.batch for each in points} == set(batches())


def test_nothing_beats_what_is_on_the_front(points):
    front = pareto(points)
    fitting = [each for each in points if each.memory.fits]
    assert front
    for each in front:
        assert each.memory.fits
        assert not [o for o in fitting if o.seconds <= each.seconds and o.mfu > each.mfu]
    for each in fitting:
        assert any(other.seconds <= each.seconds and other.mfu >= each.mfu for other in front)


def test_the_front_rises():
    front = pareto(space().points())
    assert [each.mfu for each in front] == sorted(each.mfu for each in front)
    assert [each.seconds for each in front] == sorted(each.seconds for each in front)


@pytest.mark.parametrize("seconds", [0.02, 0.03, 0.1, 1.0])
def test_a_latency_gets_the_cheapest_of_those_within_it(points, seconds):
    found = Target(seconds=seconds).pick(points)
    within = [each for each in points if each.memory.fits and each.seconds <= seconds]
    assert found.seconds <= seconds
    assert found.chip_seconds_per_token == min(each.chip_seconds_per_token for each in within)


@pytest.mark.parametrize("cost", [0.0095, 0.02, 1.0])
def test_a_cost_gets_the_fastest_of_those_within_it(points, cost):
    found = Target(chip_seconds=cost).pick(points)
    within = [each for each in points if each.memory.fits and each.chip_seconds_per_token <= cost]
    assert found.chip_seconds_per_token <= cost
    assert found.seconds == min(each.seconds for each in within)


@pytest.mark.parametrize(
    ("target", "line"),
    [(Target(seconds=1e-3), "at most 1.000 ms per pass"), (Target(chip_seconds=1e-6), "at most 1e-06 chip-seconds")],
)
def test_a_target_that_nothing_reaches_is_told_with_the_nearest(points, target, line):
    with pytest.raises(Infeasible, match=line) as told:
        target.pick(points)
    assert "the nearest" in str(told.value)
    assert "(calibrated), on" in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_a_target_where_nothing_fits_says_by_how_much():
    with pytest.raises(Infeasible, match=r"nothing fits: the nearest, on 8 h100 .* GiB per chip too large"):
        Target(seconds=1).pick(space(chip=H100).points())


@pytest.mark.parametrize("given", [{}, {"seconds": 1.0, "chip_seconds": 1.0}])
def test_a_target_is_one_of_two(given):
    with pytest.raises(UsageError, match="one of the two"):
        Target(**given)


def test_a_chip_that_nobody_measured_is_held_to_its_ideal_time():
    found = Target(seconds=0.02).pick(space(LLAMA, MI300X).points())
    assert found.basis == "ideal"
    assert found.ideal_seconds <= 0.02


def test_no_point_is_above_the_roof(points):
    for each in points:
        assert reached(each) <= roof_of(each).ceiling(intensity(each)) * (1 + 1e-9)


def test_the_roof_bends_where_memory_stops_to_bound():
    roof = roof_of(space().points()[0])
    assert roof.ridge == 275e12 / 1200e9
    assert roof.ceiling(roof.ridge / 2) == roof.peak / 2
    assert roof.ceiling(roof.ridge * 2) == roof.peak


def test_a_larger_batch_has_more_operations_for_each_byte():
    found = [intensity(each) for each in space(tried=(Mesh(4, 4, 4),), sizes=(16, 64, 256)).points()]
    assert found == sorted(found)


def asked(batch=64, chips=SLICE, workload=STEP, **more):
    return advise(space(workload=replace(workload, batch=batch), tried=(chips,), sizes=(batch,)), **more)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.000 us"),
        (2.5e-7, "0.2500 us"),
        (0.0882732, "88.27 ms"),
        (-1.5e-3, "-1.500 ms"),
        (12, "12.00 s"),
        (2e5, "200,000 s"),
    ],
)
def test_times_are_spelt_with_their_unit(seconds: float, text: str):
    assert spell_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(558.2e9, "558.2B"), (44.63e6, "44.63M"), (1200, "1.2k")])
def test_weights_are_spelt_as_models_are_called(count: float, text: str):
    assert spell_weights(count) == text


@pytest.mark.parametrize(("amount", "text"), [(32 * 2**30, "32.00 GiB"), (2**20, "1.00 MiB")])
def test_bytes_are_spelt_by_powers_of_two(amount: float, text: str):
    assert spell_bytes(amount) == text


def test_advice_without_a_target_is_of_what_was_asked_for():
    advice = asked()
    assert (advice.chosen.case.mesh, advice.chosen.case.workload.batch) == (Mesh(4, 4, 4), 64)
    assert [each.case.workload.batch for each in advice.sweep] == list(batches())
    assert any(each.case == advice.chosen.case for each in advice.sweep)


def test_advice_with_a_target_sweeps_what_was_searched():
    advice = advise(space(), target=Target(seconds=0.05))
    assert advice.chosen.seconds <= 0.05
    assert len(advice.sweep) == len(meshes(TPU)) * len(batches())


def test_source_and_folded_are_compared_in_one_layout():
    advice = asked(fold=Fold("host"))
    one, other = advice.chosen.case, advice.twin.case
    assert replace(other, fold=None) == one
    assert other.fold == Fold("host")
    assert advice.twin.terms.weights < advice.chosen.terms.weights
    assert advice.twin.terms.link_rows > 0


def test_a_table_is_as_exact_as_what_chips_calculate_with():
    assert table_for(replace(STEP, weights="int8")) == Fold("device", "bf16")
    assert table_for(replace(STEP, weights="fp32"), "disk") == Fold("disk", "fp32")


def test_what_does_not_fit_says_which_context_would():
    with pytest.raises(Infeasible, match=r"batch 64 with context 400000 .* GiB per chip too large") as told:
        asked(workload=replace(STEP, context=400_000)).require_room()
    left = int(re.findall(r"; a context of (\d+) would fit$", str(told.value))[0])
    asked(workload=replace(STEP, context=left)).require_room()
    with pytest.raises(Infeasible):
        asked(workload=replace(STEP, context=left + 1)).require_room()


def test_where_weights_alone_are_too_large_no_context_is_advised():
    advice = asked(chips=Mesh(2, 2, 2))
    with pytest.raises(Infeasible) as told:
        advice.require_room()
    assert "would fit" not in str(told.value)
    assert not advice.chosen.memory.fits


def test_the_json_has_the_keys_that_others_rely_on():
    told = asked().as_json()
    keys = {
        *("ffn_layout", "attention_layout", "ideal_seconds", "calibrated_seconds", "mfu", "chip_seconds_per_token"),
        *("memory_bytes_per_chip", "fits", "bound"),
    }
    for plan in (told, told["folded"]):
        assert plan["chosen"] in plan["layouts"]
        assert all(keys <= each.keys() for each in plan["layouts"])
    assert all({"name", "seconds_saved", "share"} <= each.keys() for each in told["levers"])
    assert all(keys | {"chips", "mesh", "batch", "pareto"} <= each.keys() for each in told["sweep"])
    assert any(each["pareto"] for each in told["sweep"])


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_model_gets_figures_that_json_can_hold(name: str, phase: str):
    workload = Workload(phase, 8, 1024)
    advice = advise(Space(find_shape(name), H100, workload, (fewest(find_shape(name), H100, workload),), (8,)))
    told = json.dumps(advice.as_json(), allow_nan=False)
    assert json.loads(told)["model"] == name


def test_no_more_chips_are_tried_than_anything_joins():
    pair = replace(H100, node=2, network_bandwidth=0)
    assert [mesh.chips for mesh in meshes(pair)] == [1, 2]
