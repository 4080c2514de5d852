"""Serving: steps that carry prompts of others, and requests that wait for room."""

from dataclasses import replace

import pytest

from prefold.common.errors import UnknownName, UsageError
from prefold.plan import Estimate, Infeasible, Target, Workload, advise, calibrations_of, find_chip, find_shape, mesh_of
from prefold.plan.calibration import engines
from prefold.plan.cost.case import Case
from prefold.plan.serving import Service, concurrency_that_fits, kv_type, serve
from prefold.plan.sweep import Space, types_to_try

H100, MI300X = map(find_chip, ("h100", "mi300x"))
LLAMA_8B, LLAMA_70B = map(find_shape, ("llama3.1-8b", "llama3.1-70b"))


def served(shape=LLAMA_8B, chip=H100, ranks=1, prompt=1024, new_tokens=1024, concurrency=16, engine="vllm", **types):
    service = Service(prompt, new_tokens, engine)
    workload = Workload("decode", concurrency, service.context, **types)
    case = Case(shape, chip, mesh_of(chip, ranks), workload, "1d-ws", "head")
    return serve(Estimate(case, calibrations_of(chip)), service)


def test_a_step_is_no_faster_than_the_ideal_one():
    for concurrency in (1, 8, 64, 200):
        found = served(concurrency=concurrency)
        assert found.ideal_tpot_seconds < found.tpot_seconds < 3 * found.ideal_tpot_seconds


def test_more_requests_slow_each_down_and_raise_the_rate_of_all():
    few, many = served(concurrency=4), served(concurrency=64)
    assert few.tpot_seconds < many.tpot_seconds
    assert few.ttft_seconds < many.ttft_seconds
    assert few.output_tokens_per_second < many.output_tokens_per_second
    assert few.tokens_per_second_per_user == 1 / few.tpot_seconds


def test_longer_prompts_slow_tokens_down_as_they_come_in_between():
    short, long = served(prompt=1024), served(prompt=8192)
    assert long.tpot_seconds > short.tpot_seconds
    assert long.ttft_seconds > 3 * short.ttft_seconds


def test_the_rate_of_all_is_littles_law():
    found = served(concurrency=32)
    total = found.ttft_seconds + 1024 * found.tpot_seconds
    assert found.output_tokens_per_second == pytest.approx(32 * 1024 / total)


def test_requests_that_do_not_fit_wait():
    fits, waits = (served(concurrency=served().concurrency_that_fits * times) for times in (1, 2))
    assert (fits.fits, waits.fits) == (True, False)
    assert waits.tpot_seconds == pytest.approx(fits.tpot_seconds, rel=0.01)
    assert waits.output_tokens_per_second == pytest.approx(fits.output_tokens_per_second, rel=0.01)
    assert waits.ttft_seconds > 1024 * waits.tpot_seconds


def test_what_fits_is_the_room_beside_the_weights():
    workload = Workload("decode", 1, 1000)
    found = concurrency_that_fits(Case(LLAMA_8B, H100, mesh_of(H100, 1), workload, "1d-ws", "head"))
    room = 0.9 * H100.memory_bytes - 2 * LLAMA_8B.weights
    assert found == pytest.approx(room / (1000 * 32 * 2 * 8 * 128 * 2), rel=0.01)


def test_a_request_alone_meets_no_prompts_of_others():
    alone = served(prompt=30_000, new_tokens=2, concurrency=1)
    step = Workload("decode", 1, 30_001)
    expected = Estimate(Case(LLAMA_8B, H100, mesh_of(H100, 1), step, "1d-ws", "head"), calibrations_of(H100))
    assert alone.ideal_tpot_seconds == pytest.approx(expected.ideal_seconds)
    assert alone.tpot_seconds < 3 * expected.calibrated_seconds


def test_nothing_fits_where_the_weights_do_not():
    found = served(LLAMA_70B)
    assert (found.fits, found.concurrency_that_fits, found.tpot_seconds, found.ttft_seconds) == (False, 0, None, None)


def test_a_chip_without_measurements_has_the_ideal_time_alone():
    found = served(chip=MI300X)
    assert (found.ttft_seconds, found.tpot_seconds, found.output_tokens_per_second) == (None, None, None)
    assert found.ideal_tpot_seconds > 0
    assert "mi300x" in found.uncalibrated


@pytest.mark.parametrize("engine", engines())
def test_each_engine_adds_what_was_fitted(engine: str):
    found = served(engine=engine, concurrency=1)
    assert found.tpot_seconds > engines()[engine].step
    assert found.ttft_seconds > engines()[engine].accept


def test_a_service_says_all_that_is_wrong_with_it():
    with pytest.raises(UsageError, match=r"prompt 0: at least one\nnew tokens -1: at least one"):
        Service(0, -1)
    with pytest.raises(UnknownName, match="the nearest: vllm"):
        Service(1, 1, "vlm")


def test_an_engine_keeps_its_own_type_of_cache():
    assert kv_type("tensorrt-llm", "fp8") == "fp8"
    assert kv_type("tensorrt-llm", "bf16") == kv_type("vllm", "fp8") == "bf16"


def space(shape=LLAMA_70B, batches=(200,), context=8192, types=(("bf16", "bf16"), ("fp8", "fp8"))) -> Space:
    return Space(shape, H100, Workload("decode", 1, context), (mesh_of(H100, 8),), batches, types=types)


def test_two_hundred_chats_of_8k_on_8_h100_are_served_in_8_bits():
    advice = advise(space(), target=Target(seconds=0.04))
    workload = advice.chosen.case.workload
    assert (workload.weights, workload.kv) == ("fp8", "fp8")
    assert advice.chosen.memory.fits
    assert advice.as_json()["commands"]["vllm"].startswith("vllm serve meta-llama/Llama-3.1-70B ")
    words = ("--tensor-parallel-size 8", "--kv-cache-dtype fp8", "--quantization fp8", "--max-num-seqs 200")
    assert all(each in advice.as_json()["commands"]["vllm"] for each in words)


def test_in_16_bits_they_do_not_fit_and_the_line_says_what_would():
    advice = advise(space(types=()))
    with pytest.raises(Infeasible, match=r"does not fit on 8 h100.* or fp8 (weights and )?KV cache would fit"):
        advice.require_room()


def test_a_service_is_searched_by_both_of_its_times():
    service = Service(1024, 256)
    where = space(LLAMA_8B, (1, 8, 32, 128), service.context)
    found = advise(where, target=Target(seconds=0.02, ttft=0.5), service=service)
    assert found.serving.fits
    assert found.serving.tpot_seconds <= 0.02
    assert found.serving.ttft_seconds <= 0.5
    assert found.serving == serve(found.chosen, service)
    alone = advise(where, target=Target(seconds=0.02), service=service)
    assert alone.chosen.case.workload.batch > 1
    assert alone.serving.output_tokens_per_second >= found.serving.output_tokens_per_second


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(seconds=1e-4), "at most 100.0 us per token: the nearest takes"),
        (Target(ttft=1e-4), "at most 100.0 us to the first token: the nearest takes"),
    ],
)
def test_what_no_service_reaches_is_named_with_the_nearest(target: Target, words: str):
    service = Service(1024, 256)
    with pytest.raises(Infeasible, match=words):
        advise(space(LLAMA_8B, (1, 8), service.context), target=target, service=service)


def test_a_first_token_cannot_be_promised_on_a_chip_without_measurements():
    service = Service(1024, 256)
    where = replace(space(LLAMA_8B, (1,), service.context), chip=MI300X, meshes=(mesh_of(MI300X, 1),))
    with pytest.raises(Infeasible, match="not known: no measurements of mi300x"):
        advise(where, target=Target(ttft=1), service=service)


def test_types_are_narrowed_where_the_chip_multiplies_8_bits():
    assert types_to_try(H100, "bf16", "bf16", fixed=(False, False)) == (("bf16", "bf16"), ("fp8", "fp8"))
    assert types_to_try(H100, "bf16", "bf16", fixed=(True, False)) == (("bf16", "bf16"), ("bf16", "fp8"))
    assert types_to_try(H100, "fp8", "bf16", fixed=(False, True)) == (("fp8", "bf16"),)
    assert types_to_try(find_chip("a100-80gb"), "bf16", "bf16", fixed=(False, False)) == (("bf16", "bf16"),)
