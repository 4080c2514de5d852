"""From ideal times to those that can be expected."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fitting import Measurement, as_table, fit, median_error, write_calibration
from benchmarks.pope2022_checks import FITTED, fit_chip, fitted_rows
from benchmarks.pope2022_rows import read_rows
from prefold.plan.calibration import Factors, known_factors
from prefold.plan.cost.terms import Terms

FULL = Factors(1, 1, 1, 0, 1)
TERMS = Terms(compute=3, attention=1, weights=2, kv=1, rows=0.5, link_rows=0.25, communication=2, phases=10)
SECONDS = st.floats(0, 1e3)


def test_at_full_rates_without_overlap_it_is_the_sum():
    assert FULL.seconds(TERMS) == pytest.approx(TERMS.upper)


def test_at_full_rates_with_all_overlap_it_is_the_largest():
    assert replace(FULL, overlap=200).seconds(TERMS) == pytest.approx(TERMS.lower, rel=1e-2)


@pytest.mark.parametrize(
    ("field", "alone"),
    [
        ("arithmetic", {"compute": 4}),
        ("memory", {"weights": 4}),
        ("links", {"communication": 4}),
    ],
)
def test_a_term_takes_longer_by_what_is_not_reached_of_its_rate(field, alone):
    nothing = Terms(0, 0, 0, 0, 0, 0, 0, 0)
    assert replace(FULL, **{field: 0.5}).seconds(replace(nothing, **alone)) == 8


def test_every_start_costs():
    assert replace(FULL, start=0.1).seconds(TERMS) == pytest.approx(TERMS.upper + 1)


def test_nothing_takes_no_time_and_the_impossible_takes_for_ever():
    assert FULL.seconds(Terms(0, 0, 0, 0, 0, 0, 0, 0)) == 0
    assert FULL.seconds(replace(TERMS, communication=float("inf"))) == float("inf")


@given(compute=SECONDS, weights=SECONDS, communication=SECONDS, overlap=st.floats(1, 20))
def test_it_is_between_the_bounds(compute, weights, communication, overlap):
    terms = Terms(compute, 0, weights, 0, 0, 0, communication, 0)
    found = replace(FULL, overlap=overlap).seconds(terms)
    assert terms.lower * (1 - 1e-9) <= found <= terms.upper * (1 + 1e-9)


def test_a_fit_finds_the_factors_that_made_the_times():
    real = Factors(0.9, 0.9, 0.4, 3e-5, 1.5)
    measured = [replace(each, seconds=each.predicted(real)) for each in fitted_rows(read_rows(), "tpu-v4")]
    found = fit(measured, "made up")
    assert found.source == "made up"
    assert [found.links, found.start, found.overlap] == pytest.approx([0.4, 3e-5, 1.5], rel=0.02)
    assert median_error(found, measured) < 1e-3


def test_no_factor_leaves_what_is_possible():
    faster = [Measurement("", ((1, replace(TERMS, compute=each)),), 0.5) for each in (1, 5, 9)]
    found = fit(faster)
    assert max(found.arithmetic, found.memory, found.links) <= 1 <= found.overlap


def test_an_error_is_negative_where_too_little_is_predicted():
    assert Measurement("", ((2, TERMS),), 4 * TERMS.upper).error(FULL) == pytest.approx(-0.5)


@pytest.mark.parametrize("chip", FITTED)
def test_the_factors_that_come_with_prefold_are_those_of_table_d2(chip):
    rows = read_rows()
    fresh, kept = fit_chip(rows, chip), known_factors()[chip]
    assert kept.source == fresh.source
    for field in ("arithmetic", "memory", "links", "start", "overlap"):
        assert getattr(kept, field) == pytest.approx(getattr(fresh, field), rel=1e-3)


def test_no_other_chip_has_factors():
    assert set(known_factors()) == set(FITTED)


def test_written_factors_say_what_they_were_fitted_to(tmp_path):
    file = tmp_path / "calibration.json"
    file.write_text('{"engines": {}}')
    used = [Measurement("", ((1, TERMS),), TERMS.upper)]
    write_calibration("passes", as_table({"any": (replace(FULL, source="some times", start=1 / 3), used)}), file)
    found = json.loads(file.read_text())
    assert found["engines"] == {}
    assert found["passes"]["any"]["source"] == "some times"
    assert (found["passes"]["any"]["measurements"], found["passes"]["any"]["start"]) == (1, 0.3333)
