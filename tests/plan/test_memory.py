"""What lies in a chip's memory."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.errors import UsageError
from prefold.plan.chip.chips import find_chip
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import Fold, table_bytes, weights_gone
from prefold.plan.cost.layouts import LAYOUTS
from prefold.plan.cost.memory import context_left, copied_heads, max_context, memory_of, times_kept
from prefold.plan.cost.workload import Workload
from prefold.plan.model.shape import find_shape

ONE, CUBE = Mesh(1, 1, 1), Mesh(4, 4, 4)
LLAMA, PYTHIA, PALM = find_shape("llama3-8b"), find_shape("pythia-6.9b"), find_shape("palm-540b")
H100, TPU, DESKTOP = find_chip("h100"), find_chip("tpu-v4"), find_chip("desktop-ddr5")
STEP = Workload("decode", 4, 1000)


def case(shape=LLAMA, chip=H100, mesh=ONE, workload=STEP, layout="1d-ws", sharding="head", fold=None):
    return Case(shape, chip, mesh, workload, layout, sharding, fold)


def test_one_chip_holds_all_weights_and_the_whole_cache():
    memory = memory_of(case())
    assert memory.weights == 2 * LLAMA.weights
    assert memory.kv == 4 * 1000 * 131072
    assert memory.table == 0
    assert memory.total == memory.weights + memory.kv + memory.activations


# Bytes of a weight: its bits, and its share of a scale.
SIZES = {
    "bf16": 2,
    "fp32": 4,
    "int8": 1,
    "fp8": 1 + 4 / 128**2,
    "int4": 0.5 + 2.5 / 128,
    "fp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
}


@pytest.mark.parametrize(("dtype", "size"), SIZES.items())
def test_smaller_weights_take_less_and_embedding_and_head_stay_in_16_bits(dtype, size):
    memory = memory_of(case(workload=replace(STEP, weights=dtype)))
    assert memory.weights == pytest.approx(size * LLAMA.layer_weights + max(2, size) * 2 * LLAMA.head_weights)


def test_embedding_and_head_can_be_as_small_as_the_rest():
    assert memory_of(case(workload=replace(STEP, weights="int8", head="int8"))).weights == LLAMA.weights


def test_a_smaller_cache_takes_less():
    assert memory_of(case(workload=replace(STEP, kv="fp8"))).kv == 4 * 1000 * 65536


@pytest.mark.parametrize("shape", [LLAMA, PYTHIA])
def test_a_table_on_the_device_takes_the_place_of_the_embedding(shape):
    source, folded = memory_of(case(shape)), memory_of(case(shape, fold=Fold()))
    assert folded.table == table_bytes(shape, Fold())
    assert source.weights - folded.weights == 2 * (weights_gone(shape) + shape.head_weights)


def test_an_embedding_that_is_the_head_stays():
    source, folded = memory_of(case(PALM, TPU)), memory_of(case(PALM, TPU, fold=Fold()))
    assert source.weights - folded.weights == 2 * weights_gone(PALM)


@pytest.mark.parametrize("placement", ["host", "disk"])
def test_a_table_elsewhere_takes_nothing(placement):
    assert memory_of(case(fold=Fold(placement))).table == 0


def test_a_table_in_a_host_memory_that_is_the_chips_own_takes_it():
    assert memory_of(case(PYTHIA, DESKTOP, fold=Fold("host"))).table == table_bytes(PYTHIA, Fold())


def test_weights_are_split_evenly_where_heads_are_enough():
    memory = memory_of(case(mesh=Mesh(1, 8, 1)))
    assert memory.weights == pytest.approx(2 * LLAMA.weights / 8)


def test_heads_fewer_than_chips_are_kept_more_than_once():
    memory = memory_of(case(mesh=Mesh(1, 16, 1)))
    again = LLAMA.num_layers * LLAMA.key_value_weights
    assert memory.weights == pytest.approx(2 * (LLAMA.weights + again) / 16)


def test_in_two_dimensions_heads_are_split_over_the_plane_alone():
    memory = memory_of(case(mesh=Mesh(2, 8, 1), layout="2d-ws"))
    assert memory.weights == pytest.approx(2 * LLAMA.weights / 16)


def test_what_does_not_fit_says_by_how_much():
    memory = memory_of(case(find_shape("llama3-70b")))
    assert not memory.fits
    assert memory.missing == memory.total - 0.9 * H100.memory_bytes > 0
    assert memory_of(case()).missing == 0


def test_a_share_of_a_chips_memory_is_reserved():
    some, all_of_it = (memory_of(case(workload=replace(STEP, memory_share=share))) for share in (0.75, 1))
    assert (some.available, some.reserved) == (0.75 * H100.memory_bytes, 0.25 * H100.memory_bytes)
    assert (all_of_it.available, all_of_it.reserved) == (H100.memory_bytes, 0)
    assert some.total == all_of_it.total
    tight = replace(H100, memory_bytes=1.1 * some.total)
    assert not memory_of(case(chip=tight)).fits
    assert memory_of(case(chip=tight, workload=replace(STEP, memory_share=1))).fits


@pytest.mark.parametrize("share", [0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match=f"memory share {share}: above 0 and at most 1"):
        replace(STEP, memory_share=share)


def test_the_parts_of_a_memory_are_its_whole():
    told = memory_of(case(fold=Fold())).as_json()
    assert list(told) == ["weights", "table", "cache", "state", "activations", "reserved"]
    assert sum(told.values()) - told["reserved"] == memory_of(case(fold=Fold())).total


@pytest.mark.parametrize(
    ("shape", "mesh", "layout", "copied"),
    [
        (LLAMA, Mesh(1, 8, 1), "1d-ws", []),
        (LLAMA, Mesh(1, 16, 1), "1d-ws", [("heads of keys and values", 8, 16)]),
        (LLAMA, Mesh(2, 8, 1), "2d-ws", []),
        (PYTHIA, Mesh(1, 12, 1), "1d-ws", [("heads", 32, 12)]),
        (find_shape("deepseek-v3"), Mesh(1, 16, 1), "1d-ws", []),
    ],
)
def test_heads_that_chips_do_not_divide_are_named(shape, mesh, layout, copied):
    assert copied_heads(case(shape, mesh=mesh, layout=layout)) == copied


@pytest.mark.parametrize(
    ("chips", "heads", "times"), [(16, 8, 2), (8, 8, 1), (1, 8, 1), (12, 32, 36 / 32), (64, 1, 64)]
)
def test_every_chip_has_as_many_whole_heads(chips, heads, times):
    assert times_kept(chips, heads) == times


def test_gathered_weights_need_room():
    prefill = Workload("prefill", 64, 128)
    stay, gathered = (memory_of(case(PALM, TPU, CUBE, prefill, layout)).activations for layout in ("2d-ws", "wg-xyz"))
    assert gathered > stay


@pytest.mark.parametrize("sharding", ["head", "batch"])
def test_a_context_of_all_that_is_left_fits_and_more_does_not(sharding):
    setup = case(PALM, TPU, CUBE, Workload("decode", 128, 100), "2d-ws", sharding)
    longest = int(context_left(setup))
    for tokens, fits in ((longest, True), (longest + 1, False)):
        assert memory_of(replace(setup, workload=replace(setup.workload, context=tokens))).fits is fits


def test_no_context_is_left_where_weights_do_not_fit():
    assert context_left(case(find_shape("llama3-70b"))) == 0


def test_the_longest_context_is_that_of_the_share_and_the_type():
    whole = max_context(LLAMA, H100, ONE, 8, "head", share=1)
    assert whole == H100.memory_bytes / (8 * 131072)
    assert max_context(LLAMA, H100, ONE, 8, "head", share=0.5, kv="int8") == whole


@given(
    batch=st.integers(1, 1024),
    context=st.integers(1, 1 << 16),
    phase=st.sampled_from(["prefill", "decode"]),
    layout=st.sampled_from(LAYOUTS),
    sharding=st.sampled_from(["head", "batch"]),
    fold=st.none() | st.builds(Fold, st.sampled_from(["device", "host", "disk"])),
    name=st.sampled_from(["palm-540b", "mt-nlg-530b", "mixtral-8x7b", "deepseek-v3", "whisper-tiny"]),
)
def test_bytes_are_never_negative(batch, context, phase, layout, sharding, fold, name):
    memory = memory_of(case(find_shape(name), TPU, CUBE, Workload(phase, batch, context), layout, sharding, fold))
    assert min(memory.weights, memory.table, memory.kv, memory.activations, memory.missing) >= 0
    assert memory.fits is (memory.missing == 0)


@given(chips=st.sampled_from([1, 2, 4, 8, 16, 32, 64]), heads=st.sampled_from([1, 2, 8, 32]))
def test_no_chip_holds_less_than_its_share(chips, heads):
    shape = replace(LLAMA, num_key_value_heads=heads)
    assert memory_of(case(shape, mesh=Mesh(1, chips, 1))).weights >= 2 * shape.weights / chips * (1 - 1e-12)


@pytest.mark.parametrize("layers", [1, 24, 31])
def test_the_longest_context_with_windows(layers: int):
    shape = replace(LLAMA, sliding_window=1000, sliding_layers=layers)
    longest = max_context(shape, H100, ONE, 8, "head", share=0.5)
    held = (32 - layers) * longest + layers * min(longest, 1000)
    assert 8 * held * 4096 == pytest.approx(0.5 * H100.memory_bytes)


def test_windows_in_every_layer_hold_any_context():
    shape = replace(LLAMA, sliding_window=1000, sliding_layers=32)
    assert max_context(shape, H100, ONE, 8, "head", share=0.5) == inf
    assert max_context(shape, H100, ONE, 8, "head", share=1e-4) < 1000
