"""What chips send each other in each layout: the formulas of Pope et al. 2022, sections 3.2 and A.2."""

from dataclasses import replace
from math import inf, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pope2022_optima import best_split, best_split_continuous, crossover
from prefold.common.errors import UnknownName
from prefold.plan.chip.hardware import Mesh
from prefold.plan.cost.layouts import LAYOUTS, Collective, Part, collectives, distinct, ffn, require_batch, volume
from prefold.plan.cost.parts import all_parts, layer_parts, look_up
from prefold.plan.errors import Infeasible
from prefold.plan.model.shape import find_shape

E, F = 16384, 65536
CUBE = Mesh(4, 4, 4)
BL = 2048
SIZES = st.integers(min_value=1, max_value=8)
MESHES = st.builds(Mesh, SIZES, SIZES, SIZES)


def sent(layout, mesh=CUBE, tokens=BL, part=None, *, exact=False):
    return volume(collectives(layout, mesh, tokens, E, part or ffn(E, F)), exact=exact)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("1d-ws", 2 * BL * E),
        ("2d-ws", 2 * BL * (E / 4 + F / 16)),
        ("wg-x", 2 * E * F / 16 + 2 * BL * E / 4),
        ("wg-xy", 2 * E * F / 4 + 2 * BL * E / 16),
        ("wg-xyz", 2 * E * F),
    ],
)
def test_volumes_are_the_papers(layout, expected):
    assert sent(layout) == pytest.approx(expected)


def test_1d_does_not_depend_on_the_number_of_chips():
    assert {sent("1d-ws", Mesh(n, 4, 2)) for n in (1, 2, 8)} == {2 * BL * E}


def test_2d_on_64_chips_sends_what_the_closed_form_says():
    assert sent("2d-ws") == 8 * BL * E / 64**0.5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_exact_volume_has_the_factor_of_every_ring(layout):
    found = collectives(layout, CUBE, BL, E, ffn(E, F))
    assert volume(found, exact=True) == pytest.approx(sum(c.elements * (c.over - 1) / c.over for c in found))
    assert volume(found, exact=True) < volume(found)


def test_a_gate_widens_the_way_in_alone():
    plain = collectives("2d-ws", CUBE, BL, E, ffn(E, F))
    gated = collectives("2d-ws", CUBE, BL, E, ffn(E, F, gated=True))
    assert [new.elements / old.elements for new, old in zip(gated, plain, strict=True)] == [1, 2, 1, 1]


def test_gathered_weights_are_marked_as_weights():
    found = collectives("wg-xy", CUBE, BL, E, ffn(E, F))
    assert [c.kind for c in found if c.weights] == ["all-gather", "all-gather"]
    assert sum(c.elements for c in found if c.weights) == 2 * E * F / 4


def test_2d_gathers_and_scatters_as_the_appendix_lists():
    found = collectives("2d-ws", CUBE, BL, E, ffn(E, F))
    assert [(c.kind, c.over) for c in found] == [
        ("all-gather", 16),
        ("reduce-scatter", 4),
        ("all-gather", 4),
        ("reduce-scatter", 16),
    ]


def test_rings_start_once_for_each_axis_and_an_all_to_all_once():
    assert Collective("all-gather", (4, 4), 1).phases == 2
    assert Collective("all-to-all", (4, 4), 1).phases == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_chip_sends_nothing(layout):
    assert collectives(layout, Mesh(1, 1, 1), BL, E, ffn(E, F)) == []


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (Mesh(1, 1, 1), ["1d-ws"]),
        (Mesh(1, 8, 1), ["1d-ws", "wg-xyz"]),
        (Mesh(2, 4, 1), ["1d-ws", "2d-ws", "wg-x", "wg-xyz"]),
        (CUBE, list(LAYOUTS)),
    ],
)
def test_only_layouts_that_differ_are_listed(mesh, expected):
    assert distinct(mesh) == expected


def test_along_one_axis_2d_is_1d():
    assert sent("2d-ws", Mesh(1, 8, 1)) == sent("1d-ws", Mesh(1, 8, 1))


@pytest.mark.parametrize(
    ("first", "second", "tokens"),
    [("2d-ws", "wg-x", F / 4), ("wg-x", "wg-xy", F), ("wg-xy", "wg-xyz", 12 * F), ("2d-ws", "wg-xyz", 2 * F)],
)
def test_crossovers_are_where_the_volumes_meet(first, second, tokens):
    found = crossover(first, second, CUBE, E, ffn(E, F))
    assert found == pytest.approx(tokens)
    assert sent(first, tokens=found) == pytest.approx(sent(second, tokens=found))


def test_a_layout_that_never_sends_less_has_no_crossover():
    assert crossover("2d-ws", "1d-ws", CUBE, E, ffn(E, F)) == inf
    assert crossover("1d-ws", "2d-ws", CUBE, E, ffn(E, F)) == 0


@pytest.mark.parametrize(("chips", "expected"), [(64, (4, 16)), (256, (8, 32))])
def test_the_best_split_is_the_papers(chips, expected):
    assert best_split(chips, E, [ffn(E, F)]) == expected
    assert best_split_continuous(chips, E, F) == pytest.approx(expected)


def test_on_16_chips_one_dimension_sends_as_little_as_two():
    assert sent("2d-ws", Mesh(2, 8, 1)) == sent("1d-ws", Mesh(2, 8, 1))


def test_below_16_chips_one_dimension_is_the_best():
    assert best_split(8, E, [ffn(E, F)])[0] == 1


@pytest.mark.parametrize(
    ("layout", "mesh", "batch", "reason"),
    [
        (
            "wg-xyz",
            Mesh(2, 1, 1),
            1,
            "wg-xyz needs a sequence for each of the 2 chips that its weights are gathered over: batch 1 is too small; "
            "batch 2 would do",
        ),
        (
            "wg-xy",
            CUBE,
            100,
            "wg-xy needs equally many sequences on each of the 16 chips that its weights are gathered over: batch 100 "
            "is no multiple of 16; batch 96 or 112 would do",
        ),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused_with_the_nearest(layout, mesh, batch, reason):
    with pytest.raises(Infeasible) as refused:
        require_batch(layout, mesh, batch)
    assert str(refused.value) == reason
    require_batch("2d-ws", CUBE, 1)


def test_an_unknown_layout_names_the_nearest():
    with pytest.raises(UnknownName, match="wg-xyz"):
        collectives("wg-xyzz", CUBE, BL, E, ffn(E, F))


def test_a_serial_block_crosses_the_plane_twice():
    """Section 3.4: parallel attention and FFN halve what is sent over y and z for E."""
    serial, parallel = find_shape("llama3-8b"), find_shape("pythia-6.9b")
    over_plane = [
        sum(
            c.over == 16
            for part in layer_parts(shape, BL, expert=False)
            for c in collectives("2d-ws", CUBE, BL, 1, part)
        )
        for shape in (serial, parallel)
    ]
    assert over_plane == [4, 2]


@pytest.mark.parametrize("name", ["pythia-6.9b", "llama3-8b", "mixtral-8x7b", "whisper-tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folded_first_layer_sends_less_and_the_others_the_same(name, layout):
    shape = find_shape(name)
    source, folded = all_parts(shape, BL), all_parts(shape, BL, folded=True)
    assert sum(count for count, _ in source) == sum(count for count, _ in folded) == shape.num_layers
    volumes = [
        sum(volume(collectives(layout, CUBE, BL, shape.hidden_size, part)) for part in parts)
        for parts in (source[0][1], folded[0][1])
    ]
    assert volumes[1] < volumes[0]
    assert folded[-1][1] == source[-1][1]


def test_a_folded_parallel_layer_keeps_the_output_of_attention_alone():
    shape = find_shape("pythia-6.9b")
    (part,) = all_parts(shape, BL, folded=True)[0][1]
    assert (part.entering, part.leaving, part.weights) == (0, 4096, 4096 * 4096)


@given(mesh=MESHES, layout=st.sampled_from(LAYOUTS), tokens=st.integers(1, 1 << 22), gated=st.booleans())
def test_volumes_are_never_negative_and_rings_never_send_more(mesh, layout, tokens, gated):
    found = collectives(layout, mesh, tokens, E, ffn(E, F, gated=gated))
    assert 0 <= volume(found, exact=True) <= volume(found)
    assert all(c.over == prod(c.axes) > 1 and mesh.chips % c.over == 0 for c in found)


@pytest.mark.parametrize(
    ("heads", "group", "ways"),
    [(1, 4, 1), (8, 4, 8), (16, 4, 16), (32, 2, 32), (64, 1, 64), (128, 1, 64)],
)
def test_fewer_heads_of_keys_and_values_than_chips_are_gathered_in_2d(heads, group, ways):
    part = Part(E + 2048, E, 1, key_values=2048, heads=heads)
    _, scattered, *gathered, _, _ = collectives("2d-ws", CUBE, BL, E, part)
    assert scattered.elements == BL * (E / 16 + 2048 / min(heads, 16))
    expected = [("all-gather", (group,), BL * 2048 / ways)] if group > 1 else []
    assert [(each.kind, each.axes, each.elements) for each in gathered] == expected


@pytest.mark.parametrize(
    ("layout", "heads", "axes", "ways"),
    [("wg-x", 1, (4,), 1), ("wg-xy", 1, (4,), 1), ("wg-xy", 8, (4, 2), 4), ("wg-xy", 16, (4, 4), 4)],
)
def test_matrices_of_few_heads_are_gathered_whole_from_chips_that_have_others(layout, heads, axes, ways):
    even = Part(E + 2048, E, E * (2 * E + 2048))
    parts = (even, replace(even, key_values=2048, heads=heads))
    before, after = ([c for c in collectives(layout, CUBE, BL, E, part) if c.weights] for part in parts)
    rest = 16 if layout == "wg-x" else 4
    assert volume(after) - volume(before) == pytest.approx(E * 2048 * (1 / ways - 1 / rest))
    assert axes in [c.axes for c in after]
    assert sum(c.phases for c in after) == sum(c.phases for c in before)


@pytest.mark.parametrize(
    ("layout", "by_head", "expected"),
    [
        ("2d-ws", False, []),
        ("2d-ws", True, [("all-gather", (4, 2), BL * 2048 / 8)]),
        ("wg-x", False, [("all-to-all", (4,), BL * (2 * 4096 + 2048) / 64)]),
        ("wg-xy", True, [("all-to-all", (4, 4), BL * (2 * 4096 + 2048) / 64)]),
        ("wg-xyz", True, [("all-to-all", (4, 4, 4), BL * (2 * 4096 + 2048) / 64)]),
    ],
)
def test_rows_are_sent_to_their_sequences_and_to_all_their_heads(layout, by_head, expected):
    found = look_up(find_shape("llama3-8b"), layout, CUBE, BL, by_head=by_head)
    assert [(c.kind, c.axes, c.elements) for c in found] == expected
