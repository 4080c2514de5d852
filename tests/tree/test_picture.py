"""The picture of a tree over time."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from prefold.common.errors import UsageError
from prefold.common.figures import require_plot
from prefold.tree import SCHEMES, beam, count_trees, few_shot, make_tree
from prefold.tree.count.picture import KINDS, over_time, picture, write_picture
from tests.tree.growing import LLAMA3_8B

SVG = "{http://www.w3.org/2000/svg}"
COUNTED = count_trees([few_shot(100, 40, 6), beam(300, 3, 20)], LLAMA3_8B)


def texts(svg: bytes) -> set[str]:
    return {"".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def test_the_course_adds_up_to_the_totals():
    shown = over_time(COUNTED)
    assert len(shown.branches) == 20
    for name, reads in COUNTED.reads.items():
        assert shown.reads[name].sum() == pytest.approx(float(reads.full), rel=1e-12)
    assert shown.tree_tokens.sum() == pytest.approx(float(COUNTED.totals["tree_tokens"]))
    assert np.array_equal(shown.branches[:8], [21.5] * 6 + [1.5] * 2)


def test_every_panel_says_what_it_shows():
    told = texts(picture(COUNTED, "a title of $5"))
    assert told >= {"live branches, mean per tree", "tokens, mean per tree", "a title of $5", "step", *SCHEMES}
    assert "GB read and written per step, mean per tree" in told
    assert "live branches" in texts(picture(count_trees([few_shot(10, 2, 3)], LLAMA3_8B), "one"))


def test_the_same_figures_are_the_same_picture():
    assert picture(COUNTED, "same") == picture(COUNTED, "same")


def test_only_schemes_that_were_asked_for_are_drawn():
    told = texts(picture(count_trees([few_shot(10, 2, 3)], LLAMA3_8B, schemes=["node"]), "one"))
    assert "node" in told
    assert "flatten" not in told


def test_a_tree_without_steps_can_be_drawn():
    assert picture(count_trees([make_tree("one", [-1], [4], [-3], [0])], LLAMA3_8B), "none").startswith(b"<?xml")


def test_it_is_written_by_the_files_ending(tmp_path: Path):
    write_picture(COUNTED, "t", tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path):
    with pytest.raises(UsageError, match=r"one of \.svg, \.png"):
        require_plot(tmp_path / "a.pdf", KINDS)
    with pytest.raises(UsageError, match="there is no folder"):
        require_plot(tmp_path / "none" / "a.svg", KINDS)
