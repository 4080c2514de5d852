"""The plan says what Pope et al. 2022 print, as far as they print it."""

from pathlib import Path

import pytest

from benchmarks.fitting import median_error
from benchmarks.plan_page import PAGE, write_section
from benchmarks.pope2022 import page
from benchmarks.pope2022_checks import choices, context_limits, crossovers, fitted_rows, held_out, serial_cost
from benchmarks.pope2022_figures import figure_3
from benchmarks.pope2022_rows import read_rows
from prefold.plan.calibration import known_factors

ROWS = read_rows()
FACTORS = known_factors()["tpu-v4"]
HEAD = (
    "table,model,phase,chips,batch,seq_in,seq_out,ffn_layout,attn_layout,weight_format,latency_s,mfu_percent,source_url"
)


def named(row) -> str:
    return f"{row.table} {row.name}"


@pytest.mark.parametrize("point", figure_3(), ids=lambda point: f"{point.series} {point.tokens:.0f}")
def test_volumes_are_those_of_figure_3(point):
    assert abs(point.error) < 1e-3


def test_figure_3_is_whole():
    assert len(figure_3()) == 4 * 14


@pytest.mark.parametrize("limit", context_limits(), ids=lambda limit: limit.name)
def test_contexts_are_those_of_table_1(limit):
    assert abs(limit.error) < 0.011


@pytest.mark.parametrize("row", [row for row in ROWS if row.mfu is not None], ids=named)
def test_mfu_is_the_printed_one(row):
    assert abs(row.mfu_percent - row.mfu) < 1


def test_layouts_are_those_of_table_2():
    found = choices(ROWS)
    assert len(found) == 4
    assert [each.chosen for each in found] == [each.printed for each in found]


@pytest.mark.parametrize("each", crossovers(), ids=lambda each: f"{each.first} {each.second}")
def test_crossovers_are_where_the_volumes_say(each):
    assert each.calculated == pytest.approx(each.expected)


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_no_ideal_time_is_above_a_measured_one(row):
    assert row.measurement.lower < row.seconds


def test_no_ideal_time_is_above_one_of_a_figure():
    assert all(each.lower < each.seconds for _, each in held_out(ROWS))


def test_times_that_were_not_fitted_are_predicted_within_20_percent_in_the_median():
    used = {(each.name, each.seconds) for each in fitted_rows(ROWS, "tpu-v4")}
    rest = [each for _, each in held_out(ROWS)]
    assert len(rest) == 41
    assert not used & {(each.name, each.seconds) for each in rest}
    assert median_error(FACTORS, rest) < 0.2


def test_factors_are_fitted_to_table_d2_alone():
    assert {row.table for row in ROWS if row.is_fitted} == {"D.2"}
    assert len([row for row in ROWS if row.is_fitted]) == 27 + 18


def test_serial_attention_and_ffn_take_longer_than_parallel_ones():
    """Section 4.3 measured 14 % per decode step of 540B on 64 chips at batch 512."""
    assert 0.05 < serial_cost(ROWS, FACTORS) < 0.25


def test_other_rows_of_the_paper_can_be_given(tmp_path: Path):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        f"{HEAD}\nD.4,PaLM 540B,total_as_printed,64,4,128,8,,,,0.4,10,\n2,PaLM 8B,decode,8,4,2048,64,WS 2D,,,1,,\n"
    )
    (row,) = read_rows(rows)
    assert (row.cases[0][1].shape.name, row.chips, row.cases[0][0]) == ("palm-8b", 8, 64)


def test_the_page_says_what_is_measured_now():
    assert page(ROWS) in PAGE.read_text()


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path):
    out = tmp_path / "page.md"
    for name, text in (("one", "1"), ("two", "2"), ("one", "3")):
        write_section(name, text, out)
    assert out.read_text().count("<!-- one -->") == 1
    assert "\n3\n" in out.read_text()
    assert "\n2\n" in out.read_text()
    assert "\n1\n" not in out.read_text()
