"""What would make a pass cheaper, tried and ranked."""

import pytest

from prefold.plan import Case, Fold, Mesh, Workload, find_chip, find_shape, mesh_of, plan_layouts, rank_levers, verdict

H100, TPU, DESKTOP, MI300X = map(find_chip, ("h100", "tpu-v4", "desktop-ddr5", "mi300x"))


def levers(name="pythia-6.9b", chip=H100, chips=1, fold=None, **workload):
    step = Workload(**{"phase": "decode", "batch": 1, "context": 2048, **workload})
    chosen = plan_layouts(find_shape(name), chip, mesh_of(chip, chips), step, fold=fold).chosen
    return chosen, rank_levers(chosen)


def named(found, name):
    return next(each for each in found if each.name == name)


def test_they_come_by_the_time_that_they_save():
    base, found = levers()
    saved = [each.seconds_saved for each in found]
    assert saved == sorted(saved, reverse=True)
    assert all(each.share == each.seconds_saved / base.seconds for each in found)
    assert {"folding", "folding, table on host", "int8 weights", "fp8 weights", "larger batch"} <= {
        e.name for e in found
    }


def test_each_saves_the_difference_to_a_case_with_it():
    base, found = levers("palm-540b", TPU, 64, batch=64)
    for each in found:
        others = each.estimate.case.workload.batch / base.case.workload.batch
        assert each.seconds_saved == pytest.approx(base.seconds - each.estimate.seconds / others)
        assert each.basis == "calibrated"


def test_folding_saves_its_share_of_the_reads():
    _, found = levers(chip=MI300X)
    assert named(found, "folding").share == pytest.approx(0.0257, abs=0.001)


def test_where_folding_comes_last_the_verdict_says_so():
    _, found = levers(chip=MI300X)
    assert "the least of" in verdict(found)
    assert "int4 weights saves" in verdict(found)


def test_where_folding_saves_nothing_the_verdict_says_so():
    _, found = levers(phase="decode", batch=100_000)
    assert named(found, "folding").seconds_saved <= 0
    assert "saves no time" in verdict(found)


def test_a_folded_model_can_only_move_its_table():
    _, found = levers(fold=Fold())
    assert {"table on host", "table on disk"} <= {each.name for each in found}
    assert verdict(found) == "The first layer is folded already."


def test_a_chip_whose_memory_is_its_hosts_has_one_place_fewer():
    _, found = levers("pythia-70m", DESKTOP)
    assert "folding, table on host" not in {each.name for each in found}


def test_weights_that_are_small_already_get_no_smaller():
    _, found = levers(weights="int8")
    assert not {"int8 weights", "fp8 weights"} & {each.name for each in found}


def test_prefixes_are_shared_where_there_are_any():
    assert "sharing prefixes" not in {each.name for each in levers(batch=8)[1]}
    _, found = levers("mt-nlg-530b", find_chip("b200"), 8, batch=32, branches=8, shared_prefix=2000)
    assert named(found, "sharing prefixes").seconds_saved > 0


def test_on_several_chips_another_layout_and_another_sharding_are_tried():
    base, found = levers("palm-540b", TPU, 64, batch=64)
    other = named(found, "another layout").estimate.case
    assert other.layout != base.case.layout
    assert named(found, "head-sharded attention").seconds_saved < 0


def test_batch_sharding_is_worth_it_for_a_long_cache():
    step = Workload("decode", 64, 8192)
    heads = Case(find_shape("palm-540b"), TPU, Mesh(4, 4, 4), step, "2d-ws", "head")
    base = next(
        each
        for each in plan_layouts(heads.shape, TPU, heads.mesh, step).estimates
        if each.case.layout == "2d-ws" and each.case.sharding == "head"
    )
    assert named(rank_levers(base), "batch-sharded attention").seconds_saved > 0


def test_what_would_not_fit_says_by_how_much():
    _, found = levers("llama3-8b", batch=256)
    assert "GiB per chip too large" in named(found, "larger batch").note
    assert named(found, "larger batch").as_json()["fits"] is False


def test_the_json_has_the_keys_that_others_rely_on():
    for each in levers()[1]:
        assert each.as_json().keys() >= {"name", "seconds_saved", "share", "basis"}
