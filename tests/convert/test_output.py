"""A folder that appears whole or not at all."""

import os
import shutil
from pathlib import Path

import pytest

from prefold.convert import OutputExists, StorageError, UsageError
from prefold.convert.checkpoint.files import CONFIG, REPORT
from prefold.convert.checkpoint.output import output_folder, require_space


def write(out: Path, text: str, *, force: bool = False, fail: bool = False) -> None:
    with output_folder(out, force=force) as folder:
        (folder / CONFIG).write_text('{"prefold": {}}')
        (folder / REPORT).write_text(text)
        if fail:
            raise RuntimeError("half way")


def test_it_appears_with_everything_in_it(tmp_path: Path):
    write(tmp_path / "out", "new")
    assert (tmp_path / "out" / REPORT).read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_it_does_not_appear_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", "new", fail=True)
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path):
    write(tmp_path / "out", "old")
    with pytest.raises(OutputExists, match="exists already; --force"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / REPORT).read_text() == "old"


def test_force_replaces_only_after_success(tmp_path: Path):
    write(tmp_path / "out", "old")
    with pytest.raises(RuntimeError):
        write(tmp_path / "out", "new", force=True, fail=True)
    assert (tmp_path / "out" / REPORT).read_text() == "old"
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / REPORT).read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_force_replaces_nothing_but_a_fold(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / REPORT).write_text("{}")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="no folded checkpoint"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_leftovers_of_a_dead_run_are_removed(tmp_path: Path):
    left = tmp_path / ".out.prefold"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "half.safetensors").write_text("half")
    write(tmp_path / "out", "new")
    assert os.listdir(tmp_path) == ["out"]
    assert set(os.listdir(tmp_path / "out")) == {REPORT, CONFIG}


@pytest.mark.parametrize("leads_to", ["folder", "nothing", "file"])
def test_a_planted_link_in_the_work_folders_place_is_not_followed(tmp_path: Path, leads_to: str):
    theirs = tmp_path / "theirs"
    if leads_to == "folder":
        theirs.mkdir()
        (theirs / "thesis.tex").write_text("years of work")
    elif leads_to == "file":
        theirs.write_text("years of work")
    (tmp_path / ".out.prefold").symlink_to(theirs)
    with pytest.raises(StorageError, match="no folder of a conversion"):
        write(tmp_path / "out", "new")
    assert leads_to != "folder" or (theirs / "thesis.tex").read_text() == "years of work"
    assert leads_to != "file" or theirs.read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_links_inside_a_dead_runs_folder_are_not_followed(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    (tmp_path / ".out.prefold").mkdir()
    (tmp_path / ".out.prefold" / "link").symlink_to(tmp_path / "theirs")
    write(tmp_path / "out", "new")
    assert (tmp_path / "theirs" / "thesis.tex").exists()
    assert set(os.listdir(tmp_path / "out")) == {REPORT, CONFIG}


@pytest.mark.parametrize("name", [".out.prefold", ".out.prefold-old", ".out.prefold/deep"])
def test_a_source_where_the_work_is_done_stays(tmp_path: Path, name: str):
    source = tmp_path / name
    source.mkdir(parents=True)
    (source / "model.safetensors").write_text("days of work")
    with (
        pytest.raises(UsageError, match="would be removed: rename it"),
        output_folder(tmp_path / "out", inputs=[source]),
    ):
        pass
    assert (source / "model.safetensors").read_text() == "days of work"


@pytest.mark.parametrize("out", ["/", "a" * 250])
def test_an_output_that_cannot_be(tmp_path: Path, out: str):
    with pytest.raises((StorageError, OutputExists)):
        write(tmp_path / out, "new")


@pytest.mark.parametrize("levels", [1, 2])
def test_an_output_that_is_a_link_stays_one(tmp_path: Path, levels: int):
    """``models/current -> v1``: the folder behind the link is replaced, as often as that is asked for."""
    v1, current = tmp_path / "models" / "v1", tmp_path / "here" / "current"
    write(v1, "first")
    current.parent.mkdir()
    current.symlink_to(v1)
    if levels == 2:
        current, middle = tmp_path / "here" / "outer", current
        current.symlink_to(middle)
    for text in ("second", "third"):
        write(current, text, force=True)
        assert current.is_symlink()
        assert (v1 / REPORT).read_text() == text
        assert os.listdir(v1.parent) == ["v1"]
    with pytest.raises(RuntimeError):
        write(current, "fourth", force=True, fail=True)
    assert (v1 / REPORT).read_text() == "third"


def test_a_link_to_no_folder_yet_leads_where_it_says(tmp_path: Path):
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    write(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / REPORT).read_text() == "new"


def test_a_link_to_itself_leads_nowhere(tmp_path: Path):
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises(StorageError, match="leads nowhere"):
        write(tmp_path / "out", "new")


def test_a_planted_link_in_an_older_outputs_place_does_not_come_back(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".out.prefold-old").symlink_to(tmp_path / "theirs")
    write(tmp_path / "out", "new")
    assert not (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "theirs") == []


def test_an_output_that_a_dead_run_had_set_aside_comes_back(tmp_path: Path):
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.prefold-old")
    with pytest.raises(OutputExists):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / REPORT).read_text() == "old"


def test_two_at_once_are_refused(tmp_path: Path):
    with output_folder(tmp_path / "out") as folder:
        (folder / REPORT).write_text("first")
        with pytest.raises(OutputExists, match="another conversion"):
            write(tmp_path / "out", "second")
    assert (tmp_path / "out" / REPORT).read_text() == "first"


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "out", "new")


def test_a_parent_that_was_made_is_removed_after_an_error(tmp_path: Path):
    with pytest.raises(RuntimeError):
        write(tmp_path / "a" / "b" / "out", "new", fail=True)
    assert os.listdir(tmp_path) == []


def test_space_is_asked_for_before_the_first_byte(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path, free // 2)
    with pytest.raises(StorageError, match="GB are needed"):
        require_space(tmp_path, free * 2)
