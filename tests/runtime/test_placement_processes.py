"""Tables elsewhere are neither copied into a process nor kept twice, and many processes read one file."""

import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from prefold.runtime import storage_prefold
from tests.conftest import load, tokens
from tests.runtime.pairs import logits, make_folded
from tests.runtime.placing import PLACEMENTS, run_cases

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells of these things")

WIDE = {"vocab_size": 100_000, "hidden_size": 64, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 16}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folded(tmp_path_factory.mktemp("llama"), vocab_size=3000)


@pytest.fixture(scope="module")
def run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("processes")
    large = make_folded(folder / "large", "llama", torch.bfloat16, num_hidden_layers=2, **WIDE)
    other = make_folded(folder / "other", "gpt_neox").rename(folder / "neox")  # its modules are named for its folder
    cases = {placement: ["memory", str(large), placement, str(llama)] for placement in PLACEMENTS}
    cases |= {name: [name, str(llama)] for name in ("shared", "killed", "read_only")}
    seen = run_cases(folder, cases, [llama, other])
    shutil.rmtree(large)
    return seen


@pytest.fixture(scope="module")
def seen(run: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return run[0]


def test_in_host_memory_the_table_is_there_once(seen: dict[str, Any]) -> None:
    told = seen["host"]
    assert told["table"] > 150e6
    assert told["rest"] < 0.1 * told["table"]
    assert 0.9 * told["table"] < told["anonymous"] < 1.2 * told["table"]
    assert 0.9 * told["table"] < told["peak"] < 1.25 * told["table"]


def test_on_disk_the_table_is_never_in_memory(seen: dict[str, Any]) -> None:
    """Neither of its own nor, while it is loaded, as pages of its file."""
    told = seen["disk"]
    assert told["table"] == seen["host"]["table"]
    assert told["anonymous"] < 0.2 * told["table"]
    assert told["peak"] < 0.25 * told["table"]
    assert told["anonymous"] < seen["device"]["anonymous"] + 0.1 * told["table"]


def test_processes_share_one_mapping(seen: dict[str, Any]) -> None:
    """Two that loaded it for themselves, one that was forked off a third, and the third."""
    told = seen["shared"]
    assert [len(other["mappings"]) for other in told["others"]] == [2, 1, 2]
    for other in told["others"]:
        assert other["same"]
        assert other["ended"] == 0
        most = max(other["mappings"], key=lambda mapping: mapping["Rss"])
        assert most["Rss"] >= 0.9 * told["size"]
        assert most["Shared_Clean"] == most["Rss"]
        assert most["Pss"] < 0.75 * most["Rss"]
        for mapping in other["mappings"]:
            assert mapping["permissions"] == "r--s"
            assert mapping["Anonymous"] == mapping["Private_Dirty"] == mapping["Shared_Dirty"] == 0


def test_the_file_is_open_for_reading_alone(seen: dict[str, Any]) -> None:
    flags = [int(each, 8) for each in seen["shared"]["flags"]]
    assert flags
    assert {each & 3 for each in flags} == {0}


def test_a_process_goes_on_while_another_is_killed(seen: dict[str, Any]) -> None:
    assert seen["killed"]["signal"] == 9
    assert seen["killed"]["same"]


def test_a_file_system_may_be_read_only(seen: dict[str, Any]) -> None:
    told = seen["read_only"]
    if not told["mounted"]:
        pytest.skip("this user may not mount file systems")
    assert told["told"] == "Read-only file system"
    assert told["same"] == [True, True]


def test_folder_without_write_permission_stays_as_it_is(tmp_path: Path) -> None:
    folder = make_folded(tmp_path)
    expected = logits(load(folder), tokens())
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path.name: path.stat()[:-3] for path in folder.iterdir()}  # without when it was read
    said = [logits(load(folder, prefold_placement=placement), tokens()) for placement in ("host", "disk")]
    folder.chmod(0o755)
    assert all(torch.equal(values, expected) for values in said)
    assert {path.name: path.stat()[:-3] for path in folder.iterdir()} == before


def test_host_without_an_accelerator_is_told_of_once(run: tuple[dict[str, Any], str]) -> None:
    """Of two checkpoints, each with modules of its own, and of a process that loads them again and again."""
    said = run[1].count("prefold_placement 'host': there is no accelerator")
    assert said == (0 if torch.accelerator.is_available() else 1)


def test_model_sent_to_a_process_maps_the_same_file(llama: Path) -> None:
    model, ids = load(llama, prefold_placement="disk"), tokens()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert torch.equal(pool.submit(logits, model, ids).result(), logits(model, ids))


_LONG_LAST_LOOK_UP = """
import sys, importlib.util, torch
spec = importlib.util.spec_from_file_location("storage_prefold", sys.argv[1])
sys.modules["storage_prefold"] = storage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(storage)
torch.set_num_threads(1)
rows = storage.DiskRows(storage.Extent(sys.argv[1], 0, (1000, 1), torch.uint8))
print(tuple(rows.fetch(torch.randint(1000, (1, 5_000_000))).shape))
"""


def test_program_may_end_while_rows_are_asked_for() -> None:
    """Of many tokens in narrow rows, so that they are there long before all were asked for."""
    arguments = [sys.executable, "-c", _LONG_LAST_LOOK_UP, storage_prefold.__file__]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 5000000, 1)\n", "")
