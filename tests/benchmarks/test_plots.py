"""The measured page: figures are what they claim to be, and its plots can be drawn again from them, to the byte."""

import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from prefold.convert.fold.reads import break_even_batch
from tests.conftest import load

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = BENCHMARKS / "run.py"
ONE = {"ratio": 1.1, "low": 1.0, "high": 1.2}


@pytest.fixture(scope="module", autouse=True)
def _scripts() -> Iterator[None]:
    """Let the scripts find each other, as they do when one of them is run."""
    sys.path.append(str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def reads_figures(_scripts) -> list[dict[str, Any]]:
    return import_module("reads").measure(quick=True)


def speed_figures() -> list[dict[str, Any]]:
    decodes = [
        {"what": f"decode, batch {batch}", "batch": batch, "predicted": 1.07, "shape": shape}
        for shape in ("one", "other")
        for batch in (1, 8)
    ]
    prefill = {"what": "prefill, 128 tokens", "batch": None, "predicted": None, "shape": "one"}
    told = {"dtype": "bfloat16", "rounds": 2, "steps": 4, "tokens": 4, "source_s": 0.2, "folded_s": 0.1, **ONE}
    return [told | each for each in (*decodes, prefill)]


def look_up_figures() -> list[dict[str, Any]]:
    seconds = {"device_s": 2e-3, "disk_s": 3e-3, "copy_s": 1e-3, "new_s": 2e-3, "to_copy": ONE, "to_new": ONE}
    bandwidth = [{"tokens": tokens, "bytes": 2000 * tokens, **seconds} for tokens in (1, 2, 4)]
    prefill = [{"tokens": tokens, "source_s": 2e-3, "folded_s": 1e-3, **ONE, "read": ONE} for tokens in (1, 2, 4)]
    return [{"shape": "one", "bandwidth": bandwidth, "kept": bandwidth, "prefill": prefill}]


def placement_figures() -> list[dict[str, Any]]:
    held = {"rss": 5e8, "anon": 4e8, "file": 1e8}
    memory = {"before": held, "loaded": held, "used": held, "all": held, "peak": 6e8}
    cases = ("device", "disk, warm", "disk, cold")
    decode = {"batch": 1, "tokens": 4, "seconds": {"device": 0.1}, "to_device": {"host": ONE, "disk": ONE}}
    first = {
        "prompt": 4,
        "seconds": dict.fromkeys(cases, 0.1),
        "to_device": dict.fromkeys(cases, ONE),
        "table": {case: {"held": 0.5, "faults": 1, "bytes": 4096} for case in cases},
    }
    names = ("source", "device", "host", "disk")
    told = {"shape": "one", "source_bytes": 1e8, "folded_bytes": 2e8, "table_bytes": 1e8}
    return [told | {"memory": dict.fromkeys(names, memory), "decode": [decode], "first": [first]}]


@pytest.fixture(scope="module")
def stored(reads_figures) -> dict[str, Any]:
    """Return what a run leaves in ``benchmarks.json``, with figures made by hand where they were timed."""
    made = {"speed": speed_figures(), "look-up": look_up_figures(), "placement": placement_figures()}
    machine = import_module("machine").describe()
    return {name: {"machine": machine, "figures": each} for name, each in (made | {"reads": reads_figures}).items()}


def drawn_again(stored: dict[str, Any], docs: Path) -> dict[str, bytes]:
    """Write the page from what is stored; returns every file by name."""
    docs.mkdir()
    (docs / "benchmarks.json").write_text(json.dumps(stored))
    subprocess.run([sys.executable, RUN, "--draw", "--docs", docs], check=True)
    return {path.relative_to(docs).as_posix(): path.read_bytes() for path in docs.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def docs(stored, tmp_path_factory) -> dict[str, bytes]:
    return drawn_again(stored, tmp_path_factory.mktemp("drawn") / "docs")


def test_the_page_and_its_plots_are_drawn_from_stored_figures(docs: dict[str, bytes]):
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", docs["benchmarks.md"].decode())
    assert sorted(links) == sorted(name for name in docs if name.endswith(".svg"))
    assert len(links) == 5


def test_figures_are_left_alone_when_nothing_is_measured(docs: dict[str, bytes], stored: dict[str, Any]):
    assert json.loads(docs["benchmarks.json"]) == stored


def test_the_same_figures_give_the_same_bytes(docs: dict[str, bytes], stored: dict[str, Any], tmp_path: Path):
    assert drawn_again(stored, tmp_path / "docs") == docs


def test_every_plot_is_whole_undated_on_white_and_small(docs: dict[str, bytes]):
    for name, text in docs.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(text)
            assert root.tag.endswith("svg")
            assert b"<dc:date>" not in text
            assert b"fill: #ffffff" in text
            assert b"<text" in text
            assert len(text) < 64 << 10, name


def test_the_break_even_that_is_drawn_is_that_of_the_formula(reads_figures: list[dict[str, Any]]):
    [found] = reads_figures
    shape = import_module("shapes").PYTHIA_70M
    assert found["shape"] == shape.name
    assert found["break_even"] == break_even_batch(import_module("reads").census_of(shape))
    drawn = import_module("plots").svg(import_module("reads").PLOTS["reads"], reads_figures)
    assert f">{found['break_even']:,}<" in drawn


def test_lines_of_reads_cross_at_the_break_even(reads_figures: list[dict[str, Any]]):
    [found] = reads_figures
    for batch, before, after in zip(found["batches"], found["before"], found["after"], strict=True):
        assert (before >= after) == (batch <= found["break_even"])
    assert found["batches"][0] == 1
    assert found["batches"][-1] > found["break_even"]


@pytest.mark.parametrize("model_type", ["gpt_neox", "phi", "llama"])
def test_the_timed_look_up_replaces_the_timed_work(checkpoint, fold, capsys, model_type: str):
    case = import_module("look_up_case")
    source = checkpoint(model_type)
    folded = fold(source)
    case.main(str(source), str(folded), "4", "2")
    found = last_line(capsys)
    assert [each["tokens"] for each in found["bandwidth"]] == [each["tokens"] for each in found["prefill"]] == [1, 2, 4]
    model = load(folded)
    row = model.get_input_embeddings().weight
    assert found["bandwidth"][-1]["bytes"] == 2 * 4 * row.shape[1] * row.itemsize
    before, after = case._first_layers(load(source), model)
    ids = case._Tokens(row.shape[0]).draw(4)
    for one, other in zip(before.run(ids), after.run(ids), strict=True):
        torch.testing.assert_close(one, other)


def test_placements_are_timed_with_all_of_the_table_in_memory_but_when_cold(checkpoint, fold, capsys):
    folded = fold(checkpoint("gpt_neox"))
    import_module("placement_speed").main(str(folded), "2", "2", "4")
    found = last_line(capsys)
    assert [each["batch"] for each in found["decode"]] == [1, 8]
    assert found["decode"][0]["seconds"].keys() == {"device", "host", "disk"}
    held = {case: each["held"] for case, each in found["first"][0]["table"].items()}
    assert held["device"] == held["disk, warm"] == 1
    assert held["disk, cold"] <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("placement", ["", "disk"])
def test_memory_is_told_by_what_backs_it(checkpoint, fold, capsys, placement: str):
    source = checkpoint("gpt_neox")
    import_module("placement_memory").main(str(fold(source) if placement else source), placement)
    found = last_line(capsys)
    for when in ("before", "loaded", "used", "all"):
        assert 0 < found[when]["anon"] + found[when]["file"] <= found[when]["rss"]
    assert found["peak"] >= found["loaded"]["rss"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_that_is_dropped_from_memory_stays_mapped_and_whole(tmp_path: Path):
    cache, path = import_module("cache"), tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert memory[:] == path.read_bytes()
    cache.warm(path)
    assert cache.resident_share(path) == 1
    cache.drop(path)
    assert memory[:] == path.read_bytes()
