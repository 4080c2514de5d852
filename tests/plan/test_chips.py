"""Chips by name and from files, the units of their figures, and meshes of them."""

from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefold.common.errors import UnknownName, UsageError
from prefold.common.units import parse_quantity
from prefold.plan.chip.chips import GENERATIONS, catalogue, find_chip, parse_chips, read_chips
from prefold.plan.chip.hardware import Chip, Mesh, cubic_mesh, mesh_of, parse_mesh
from prefold.plan.errors import Infeasible

MINE = """
[mine]
peak = { bf16 = "100 TFLOP/s", int8 = "200 TOP/s" }
memory = "16 GiB"
memory_bandwidth = "500 GB/s"
link_bandwidth = "0 GB/s"
host_bandwidth = "32 GB/s"
disk_bandwidth = "3 GB/s"
"""
LINKS = ("network_bandwidth", "node")
FIGURES = ("peak", "memory", "memory_bandwidth", "link_bandwidth", "host_bandwidth", "disk_bandwidth")
LOWERCASE = "abcdefghijklmnopqrstuvwxyz"


def faults_of(text: str) -> list[str]:
    with pytest.raises(UsageError) as raised:
        parse_chips(text, "mine.toml")
    return str(raised.value).split("\n")


def without(field: str) -> str:
    return "\n".join(line for line in MINE.split("\n") if not line.startswith(f"{field} ="))


def test_the_catalogue_has_what_is_promised():
    tpus, apple, others = ("tpu-v4", "tpu-v5e", "tpu-v6e"), ("m2-ultra", "m4-max"), ("desktop-ddr5", "phone")
    modules = ("a100-40gb", "a100-80gb", "h100", "h200", "b200", "b300", "gb200", "mi300x", "mi325x")
    cards = ("l4", "l40s", "a10g", "t4", "rtx-3090", "rtx-4090", "rtx-5090", "dgx-spark")
    assert set(catalogue()) == {*tpus, *modules, *cards, *apple, *others}


@pytest.mark.parametrize("chip", catalogue().values(), ids=catalogue())
def test_every_figure_has_a_source(chip: Chip):
    assert {*FIGURES, *LINKS, *(["axes"] if chip.axes else [])} == set(chip.source)
    assert chip.generation
    assert all(text and text != "hardware.toml" for text in chip.source.values())


@pytest.mark.parametrize("chip", catalogue().values(), ids=catalogue())
def test_no_figure_is_out_of_order(chip: Chip):
    """Narrower numbers are no slower, and each place that a table can lie in is no faster than the one before."""
    assert chip.peak["bf16"] <= chip.peak_of("fp8") <= chip.peak.get("fp4", chip.peak_of("fp8"))
    assert chip.peak["bf16"] <= chip.peak_of("int8")
    assert chip.disk_bandwidth < chip.host_bandwidth <= chip.memory_bandwidth
    assert chip.link_bandwidth < chip.memory_bandwidth
    assert chip.network_bandwidth < (chip.link_bandwidth or chip.memory_bandwidth)


@pytest.mark.parametrize("chip", catalogue().values(), ids=catalogue())
def test_links_join_a_node(chip: Chip):
    assert (chip.node > 1) == (chip.link_bandwidth > 0)
    assert chip.node >= max(chip.axes, default=1)


@pytest.mark.parametrize(
    ("links", "axes", "node"), [("0 GB/s", "[]", 1), ("300 GB/s", "[]", 8), ("300 GB/s", '["1x2x2", "4x4x4"]', 64)]
)
def test_a_node_that_a_file_leaves_open_is_what_its_links_are_made_for(links: str, axes: str, node: int):
    chip = parse_chips(f"{MINE.replace('0 GB/s', links)}axes = {axes}", "mine.toml")["mine"]
    assert (chip.node, chip.network_bandwidth, chip.generation) == (node, 0, "")
    assert set(chip.source) == {*FIGURES, *(["axes"] if chip.axes else [])}


def test_a_file_may_have_nodes_and_their_network():
    told = 'node = 4\nnetwork_bandwidth = "25 GB/s"\ngeneration = "ampere"\n[mine.source]\nnode = "its board"\n'
    chip = parse_chips(MINE + told, "mine.toml")["mine"]
    assert (chip.node, chip.network_bandwidth, chip.generation) == (4, 25e9, "ampere")
    assert (chip.source["node"], chip.source["network_bandwidth"]) == ("its board", "mine.toml")


def test_tpu_v4_is_as_in_the_paper():
    chip = find_chip("tpu-v4")
    assert chip.peak["bf16"] == 275e12
    assert chip.memory_bytes == 32 * 2**30
    assert chip.memory_bandwidth == 1200e9
    assert chip.link_bandwidth == 270e9
    meshes = {8: (2, 2, 2), 16: (2, 4, 2), 32: (4, 2, 4), 64: (4, 4, 4), 128: (8, 4, 4), 256: (4, 8, 8)}
    assert chip.axes == meshes


@pytest.mark.parametrize(
    ("name", "printed_with_sparsity"),
    [("h100", 1979e12), ("h200", 1979e12), ("l4", 242e12), ("b300", 4500e12), ("gb200", 5000e12), ("l40s", 724e12)],
)
def test_peaks_are_dense(name: str, printed_with_sparsity: float):
    assert find_chip(name).peak["bf16"] == pytest.approx(printed_with_sparsity / 2, rel=1e-3)


def test_a_chip_multiplies_what_it_has_no_rate_for_in_bf16():
    chip = find_chip("a100-80gb")
    assert chip.peak_of("fp8") == chip.peak["bf16"]


def test_estimates_are_told_from_the_vendors_figures():
    assert find_chip("h100").estimates == ["disk_bandwidth"]
    assert "peak" in find_chip("phone").estimates
    assert "memory_bandwidth" not in find_chip("phone").estimates


def test_names_are_found_in_any_case():
    assert find_chip("H100") is find_chip("h100")


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(UnknownName, match=r"^tpuv4: no such hardware; the nearest: tpu-v4"):
        find_chip("tpuv4")


def test_a_file_of_ones_own_is_read(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE + 'axes = ["1x2x3"]\n[mine.source]\nmemory = "its label"\n')
    chip = find_chip(str(tmp_path / "mine.toml"))
    assert (chip.name, chip.memory_bytes, chip.peak) == ("mine", 16 * 2**30, {"bf16": 1e14, "int8": 2e14})
    assert chip.axes == {6: (1, 2, 3)}
    assert chip.source["memory"] == "its label"
    assert chip.source["peak"] == str(tmp_path / "mine.toml")
    assert chip.estimates == []


def test_the_catalogue_is_in_the_format_of_a_file_of_ones_own():
    file = Path(__file__).parents[2] / "plan" / "chip" / "hardware.toml"
    assert read_chips(file) == catalogue()


def test_there_must_be_one_chip_in_a_file(tmp_path: Path):
    (tmp_path / "two.toml").write_text(MINE + MINE.replace("[mine]", "[yours]"))
    with pytest.raises(UsageError, match=r"two\.toml: mine, yours: there must be one chip"):
        find_chip(str(tmp_path / "two.toml"))
    (tmp_path / "none.toml").write_text("")
    with pytest.raises(UsageError, match=r"none\.toml: no chip"):
        find_chip(str(tmp_path / "none.toml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"gone\.toml: No such file"):
        find_chip(str(tmp_path / "gone.toml"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.toml: not a text file"):
        find_chip(str(tmp_path / "binary.toml"))


def test_what_is_not_toml_is_one_line():
    (fault,) = faults_of("[mine\npeak")
    assert fault.startswith("mine.toml: not TOML: ")


@given(st.sets(st.sampled_from(FIGURES), min_size=1))
def test_all_missing_figures_are_in_one_line(left_out: set[str]):
    text = MINE
    for field in left_out:
        text = "\n".join(line for line in text.split("\n") if not line.startswith(f"{field} ="))
    (fault,) = faults_of(text)
    assert fault == f"mine.toml: mine: missing {', '.join(field for field in FIGURES if field in left_out)}"


def test_a_chip_needs_a_peak_in_bf16():
    assert faults_of(MINE.replace("bf16", "fp8")) == ["mine.toml: mine: missing peak.bf16"]


@given(
    st.text(LOWERCASE, min_size=1).filter(lambda name: name not in (*FIGURES, *LINKS, "axes", "generation", "source"))
)
def test_a_field_that_no_chip_has_is_named(name: str):
    assert faults_of(f'{MINE}{name} = "1 GB"') == [f"mine.toml: mine: {name}: no chip has such a field"]


@pytest.mark.parametrize(
    ("written", "wrong", "field"),
    [
        ("16 GiB", "16 GB/s", "memory"),
        ("16 GiB", "16", "memory"),
        ("16 GiB", "16 gib", "memory"),
        ("16 GiB", "-16 GiB", "memory"),
        ("500 GB/s", "500 GB", "memory_bandwidth"),
        ("500 GB/s", "500 Gbit/s", "memory_bandwidth"),
        ("100 TFLOP/s", "100 TFLOPS", "peak.bf16"),
        ("200 TOP/s", "200 GB/s", "peak.int8"),
    ],
)
def test_a_wrong_unit_is_one_line_with_the_right_ones(written: str, wrong: str, field: str):
    (fault,) = faults_of(MINE.replace(written, wrong))
    assert fault.startswith(f"mine.toml: mine: {field}: '{wrong}' is not a number of ")
    assert written.split()[1] in fault


def test_a_number_without_its_unit_is_wrong():
    (fault,) = faults_of(MINE.replace('"16 GiB"', "16"))
    assert fault.startswith("mine.toml: mine: memory: 16 is not a number of bytes with its unit")


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('axes = ["4x4"]', "axes: 4x4: not a mesh, which is written as 4x4x4: chips along x, y and z"),
        ('axes = ["1x1x4", "1x2x2"]', "axes: several meshes of 4 chips"),
        ('axes = "4x4x4"', 'axes: not a list of meshes, as ["2x2x2", "4x4x4"]'),
        ('source = "the web"', "source: not a table of texts"),
        ("node = 0", "node: 0 is not a number of chips"),
        ("node = true", "node: True is not a number of chips"),
        ('node = "8"', "node: '8' is not a number of chips"),
        ('generation = "Ampere"', f"generation: 'Ampere': no such generation; there are {', '.join(GENERATIONS[1:])}"),
        ('source = { colour = "grey" }', "source.colour: no chip has such a field"),
    ],
)
def test_axes_and_sources_are_checked(added: str, fault: str):
    assert faults_of(f"{MINE}{added}") == [f"mine.toml: mine: {fault}"]


@pytest.mark.parametrize(
    ("written", "wrong", "fault"),
    [
        ('"16 GiB"', '"0 GiB"', "memory: it cannot be nothing"),
        ('"100 TFLOP/s"', '"0 TFLOP/s"', "peak.bf16: it cannot be nothing"),
        ("int8 =", "int3 =", "peak.int3: no such type of numbers; there are bf16, fp8, fp4, int8"),
        ('{ bf16 = "100 TFLOP/s", int8 = "200 TOP/s" }', "7", 'peak: not a table, as { bf16 = "312 TFLOP/s" }'),
        ('{ bf16 = "100 TFLOP/s", int8 = "200 TOP/s" }', '"bf16"', 'peak: not a table, as { bf16 = "312 TFLOP/s" }'),
    ],
)
def test_figures_that_make_no_sense_are_refused(written: str, wrong: str, fault: str):
    assert faults_of(MINE.replace(written, wrong)) == [f"mine.toml: mine: {fault}"]


def test_all_faults_are_named_each_on_its_line():
    text = without("memory").replace("500 GB/s", "fast") + 'colour = "grey"\n[yours]\n'
    assert [fault.split(": ")[1:3] for fault in faults_of(text)] == [
        ["mine", "missing memory"],
        ["mine", "colour"],
        ["mine", "memory_bandwidth"],
        ["yours", f"missing {', '.join(FIGURES)}"],
    ]


def test_a_value_beside_the_chips_is_no_chip():
    assert faults_of(f"memory = 3\n{MINE}") == ["mine.toml: memory: not a table of a chip's figures"]


@given(st.integers(0, 10**9), st.sampled_from([("B", 1), ("kB", 10**3), ("GB", 10**9), ("KiB", 2**10), ("TiB", 2**40)]))
def test_a_quantity_is_its_number_times_its_unit(number: int, unit: tuple[str, int]):
    assert parse_quantity(f"{number} {unit[0]}", "bytes") == number * unit[1]
    assert parse_quantity(f"{number}{unit[0]}/s", "bytes per second") == number * unit[1]


@pytest.mark.parametrize("text", ["", "GB", "1,000 GB", "1e3 GB", "1 GB ", " 1 GB", "1  GB", "nan GB", "1. GB"])
def test_a_quantity_is_written_in_one_way(text: str):
    with pytest.raises(UsageError, match="is not a number of bytes with its unit"):
        parse_quantity(text, "bytes")


def test_operations_may_be_of_whole_numbers():
    assert parse_quantity("2.5 PFLOP/s", "operations per second") == parse_quantity(
        "2500 TOP/s", "operations per second"
    )


SIDES = st.integers(1, 64)


@given(SIDES, SIDES, SIDES)
def test_a_mesh_is_read_as_it_is_written(x: int, y: int, z: int):
    mesh = Mesh(x, y, z)
    assert parse_mesh(str(mesh)) == mesh
    assert mesh_of(find_chip("tpu-v4"), mesh=mesh) == mesh


@pytest.mark.parametrize(
    "text", ["", "4", "4x4", "4x4x4x4", "0x4x4", "-4x4x4", "4x4xz", "4 x 4 x 4", "4.0x4x4", "9999999x1x1"]
)
def test_what_is_no_mesh_is_refused(text: str):
    with pytest.raises(UsageError, match="written as 4x4x4"):
        parse_mesh(text)


def test_a_mesh_may_be_written_in_capitals():
    assert parse_mesh(" 4X8X8 ") == Mesh(4, 8, 8)


@given(st.integers(1, 4096))
def test_a_cubic_mesh_has_all_chips_and_its_axes_in_order(chips: int):
    mesh = cubic_mesh(chips)
    assert mesh.chips == chips
    assert mesh.x <= mesh.y <= mesh.z


@given(st.integers(1, 64), st.data())
def test_no_other_mesh_is_more_cubic(chips: int, data: st.DataObject):
    x = data.draw(st.sampled_from([n for n in range(1, chips + 1) if chips % n == 0]))
    y = data.draw(st.sampled_from([n for n in range(1, chips // x + 1) if chips // x % n == 0]))
    mesh = cubic_mesh(chips)
    assert mesh.x + mesh.y + mesh.z <= x + y + chips // (x * y)


@pytest.mark.parametrize(("chips", "mesh"), [(1, "1x1x1"), (2, "1x1x2"), (7, "1x1x7"), (8, "2x2x2"), (32, "2x4x4")])
def test_chips_without_axes_of_their_own_are_as_cubic_as_can_be(chips: int, mesh: str):
    assert str(mesh_of(find_chip("h100"), chips)) == mesh


@pytest.mark.parametrize("chips", [8, 16, 32, 64, 128, 256])
def test_chips_are_joined_along_the_axes_of_their_links(chips: int):
    chip = find_chip("tpu-v4")
    mesh = mesh_of(chip, chips)
    assert (mesh.x, mesh.y, mesh.z) == chip.axes[chips]
    assert prod(chip.axes[chips]) == chips


def test_one_chip_is_meant_where_nothing_is_said():
    assert mesh_of(find_chip("tpu-v4")) == Mesh(1, 1, 1)


def test_a_mesh_of_another_number_of_chips_is_refused():
    with pytest.raises(Infeasible, match=r"^mesh 4x4x4 has 64 chips, not 32$"):
        mesh_of(find_chip("tpu-v4"), 32, parse_mesh("4x4x4"))
    assert mesh_of(find_chip("tpu-v4"), 64, parse_mesh("2x4x8")) == Mesh(2, 4, 8)


@pytest.mark.parametrize("chips", [0, -1])
def test_there_is_at_least_one_chip(chips: int):
    with pytest.raises(UsageError, match="at least one"):
        mesh_of(find_chip("tpu-v4"), chips)


def test_chips_that_nothing_joins_are_alone():
    with pytest.raises(Infeasible, match="phone: nothing joins several of them"):
        mesh_of(find_chip("phone"), 2)
    assert mesh_of(find_chip("phone"), 1) == Mesh(1, 1, 1)
