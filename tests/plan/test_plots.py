"""The pictures of a plan, and the page that holds them."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from prefold.common.errors import UsageError
from prefold.common.figures import require_plot
from prefold.plan import Workload, find_chip, find_shape
from prefold.plan.advice import advise
from prefold.plan.page.page import page, write_plot
from prefold.plan.page.plots import KINDS, picture
from prefold.plan.page.tables import about, layouts_table, levers_table, points_table, source_and_folded
from prefold.plan.sweep import Space, Target, batches, meshes

SVG = "{http://www.w3.org/2000/svg}"


def advised(chip="tpu-v4", model="palm-540b", name=None, **target):
    shape, hardware = find_shape(model), find_chip(chip)
    space = Space(
        replace(shape, name=name or shape.name), hardware, Workload("decode", 1, 2048), meshes(hardware), batches()
    )
    return advise(space, target=Target(**(target or {"seconds": 0.05})))


@pytest.fixture(scope="module")
def advice():
    return advised()


def texts(svg: bytes) -> list[str]:
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_the_same_plan_is_the_same_picture(advice):
    assert picture(advice) == picture(advised())


def test_a_users_own_style_changes_nothing(advice):
    import matplotlib as mpl

    plain = picture(advice)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert picture(advice) == plain


@pytest.mark.parametrize(
    ("chip", "model", "basis"), [("tpu-v4", "palm-540b", "calibrated"), ("mi300x", "llama3-8b", "ideal")]
)
def test_every_axis_says_which_times_it_has(chip, model, basis):
    told = texts(picture(advised(chip, model)))
    assert {f"ms per pass ({basis})", f"MFU, % ({basis})", f"TFLOP/s of one chip ({basis})"} <= set(told)
    assert "one chip's roof (ideal)" in told


def test_each_number_of_chips_has_a_line(advice):
    told = texts(picture(advice))
    chips = {each.case.mesh.chips for each in advice.sweep if each.memory.fits}
    assert {f"{count} chips" for count in chips} <= set(told)


def test_a_picture_may_be_png(advice):
    assert picture(advice, "png").startswith(b"\x89PNG")


def test_a_plan_that_does_not_fit_is_drawn_too():
    shape, chip = find_shape("palm-540b"), find_chip("l4")
    alone = advise(Space(shape, chip, Workload("decode", 1, 2048), (meshes(chip)[0],), (1,)))
    assert not alone.front
    assert "chosen" in texts(picture(alone))
    assert "<svg" in page(alone)


def test_the_page_has_the_picture_and_every_cell_of_the_tables(advice, tmp_path: Path):
    write_plot(advice, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("<svg") == 1
    for cells in (layouts_table(advice), source_and_folded(advice), levers_table(advice), points_table(advice)):
        assert all(f">{cell}</t" in text for row in cells for cell in row)
    assert advice.verdict.replace("'", "&#x27;") in text
    assert all(line.replace("'", "&#x27;") in text for line in about(advice))


def test_the_page_loads_nothing_from_elsewhere(advice):
    text = page(advice)
    assert "<script" not in text
    links = re.findall(r"""(?:src|href)=["']([^"'#][^"']*)""", text)
    assert not links


def test_names_are_escaped(advice):
    text = page(advised(name="<b>&"))
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_pictures_are_written_as_files(advice, tmp_path: Path, kind: str):
    file = tmp_path / f"plan.{kind}"
    require_plot(file, KINDS)
    write_plot(advice, file)
    assert file.read_bytes() == picture(advice, kind)


@pytest.mark.parametrize(("name", "line"), [("plan.pdf", "one of .svg, .png, .html"), ("no/plan.svg", "no folder no")])
def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path, monkeypatch, name: str, line: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=line):
        require_plot(Path(name), KINDS)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'prefold[plot]'")):
        require_plot(Path("plan.svg"), KINDS)
