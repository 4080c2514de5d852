"""The process that measures: what it loads, and what it says of rows."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.small import random_model, small_config
from prefold.convert.checkpoint.files import RUNTIME
from prefold.convert.fold.table import table_rows
from prefold.verify.forking import shared_server
from prefold.verify.measuring import ProbeFailed, measure
from prefold.verify.probe.job import NEW_TOKENS, Job
from prefold.verify.probe.probe import left_padded
from prefold.verify.probe.rows import RowCount, measure_rows
from tests.conftest import load
from tests.verify.conftest import Pair
from tests.verify.faults import folded_cut


def test_it_runs_the_module_in_the_checkpoint_and_never_imports_the_runtime(llama: Pair):
    """That the server has not seen the runtime it requires itself: else it would not have answered."""
    job = Job(
        str(llama.folded), "float32", "AutoModelForCausalLM", [[5, 6, 7], [8]], continued=[5, 6, 7] + [9] * NEW_TOKENS
    )
    loading = measure(job).figures["loading"]
    assert loading["module"].startswith("transformers_modules.")
    assert loading["module"].endswith(".modeling_prefold")
    assert loading["class"] == "LlamaForCausalLM"
    assert [loading[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")] == [[], [], []]


def test_a_fork_and_a_process_of_its_own_say_the_same(llama: Pair):
    job = Job(str(llama.source), "float32", "AutoModelForCausalLM", [[5, 6, 7], [8]], with_text=True)
    forked, alone = measure(job), measure(job, isolated=True)
    assert forked.figures == alone.figures
    assert forked.outputs.keys() == alone.outputs.keys()
    assert all(torch.equal(forked.outputs[name], alone.outputs[name]) for name in alone.outputs)


def test_a_fork_sees_nothing_of_the_one_before(llama: Pair, tmp_path: Path):
    """Two folds whose modules differ: each runs its own, from an empty cache of remote code."""
    other = shutil.copytree(llama.folded, tmp_path / "folded")
    module = other / RUNTIME
    module.write_text(module.read_text().replace("FORMAT = ", 'raise ValueError("other")\nFORMAT = '))
    job = Job(str(llama.folded), "float32", "AutoModelForCausalLM", [[5, 6, 7]], continued=[5, 6, 7, 9])
    measure(job)
    with pytest.raises(ProbeFailed, match="folded: does not run: ValueError: other"):
        measure(replace(job, folder=str(other)))
    measure(job)


def test_where_a_fault_is_looked_for_all_that_was_said_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = Job(str(tmp_path / "absent"), "float32", "AutoModelForCausalLM", [[5, 6, 7]])
    with pytest.raises(ProbeFailed) as short:
        measure(job)
    assert len(str(short.value).splitlines()) == 1
    monkeypatch.setenv("PREFOLD_DEBUG", "1")
    with pytest.raises(ProbeFailed, match="Traceback"):
        measure(job)


def test_a_padded_batch_of_a_model_that_pools_its_positions_is_compared_whole(tmp_path: Path):
    random_model(small_config("funnel", "masked"), AutoModelForSequenceClassification).save_pretrained(tmp_path)
    prompts = [[*range(4, 16)], [*range(20, 27)]]
    job = Job(str(tmp_path), "float32", "AutoModelForSequenceClassification", prompts, only_outputs=True)
    assert measure(job).outputs["padded"].shape[0] > len(prompts)


def test_a_server_that_is_gone_is_started_again(llama: Pair):
    job = Job(str(llama.source), "float32", "AutoModelForCausalLM", [[5, 6, 7]], only_outputs=True)
    shared_server().close()
    assert measure(job).outputs["prefill"].isfinite().all()


def test_a_server_ends_with_the_process_that_started_it():
    show = "print(shared_server()._server.pid, flush=True)"
    code = f"import os; from prefold.verify import shared_server; {show}; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    server = int(done.stdout)
    for _ in range(600):
        if not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text().split()[2]:
            break
        sleep(0.1)
    else:
        raise AssertionError("it is still there")


def test_prompts_are_padded_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.fixture(scope="module")
def table(gpt_neox: Pair) -> tuple:
    """Return a source model, its cut, and its table."""
    model, cut = load(gpt_neox.source), folded_cut(gpt_neox.folded)
    return model, cut, torch.cat(list(table_rows(model, cut, 64)))


def rows_found(model, cut, rows: torch.Tensor, chunk_tokens: int) -> dict[str, Any]:
    """Compare a table with the live first layer."""
    count = RowCount()
    measure_rows(model, cut, rows, chunk_tokens, count)
    return count.figures()


def test_the_rows_of_a_right_table_are_within_rounding(table: tuple):
    found = rows_found(*table, chunk_tokens=97)
    assert found["rows"] == 97
    assert found["beyond_rounding"] == found["not_finite"] == 0
    assert max(found["max_abs_difference"].values()) < 1e-5


@pytest.mark.parametrize("scale", [2.0**-20, 1.0, 2.0**20])
def test_a_wrong_value_is_found_whatever_the_scale_of_its_column(table: tuple, scale: float):
    model, cut, rows = table
    column = cut.columns[0]
    module = model.get_submodule(column.module)
    kept = {name: parameter.data.clone() for name, parameter in module.named_parameters()}
    scaled = rows.clone()
    scaled[:, column.start : column.start + column.width] *= scale
    try:
        for parameter in module.parameters():
            parameter.data.mul_(scale)
        right = rows_found(model, cut, scaled, 97)
        scaled[41, column.start + 3] += scale * 1e-3
        wrong = rows_found(model, cut, scaled, 97)
    finally:
        for name, parameter in module.named_parameters():
            parameter.data.copy_(kept[name])
    assert right["beyond_rounding"] == 0
    assert wrong["first_beyond_rounding"] == wrong["first_unequal"] == [41]
    assert max(wrong["max_abs_difference"], key=wrong["max_abs_difference"].get) == column.module


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["stored", "live", "both"])
def test_a_row_that_is_not_finite_is_found_on_either_side(table: tuple, bad: float, where: str):
    model, cut, rows = table
    rows, live = rows.clone(), model.get_submodule(cut.embedding).weight.data
    kept = live[13, 2].item()
    try:
        if where != "stored":
            live[13, 2] = bad
        if where != "live":
            rows[13, 2] = bad
        found = rows_found(model, cut, rows, 40)
    finally:
        live[13, 2] = kept
    assert found["first_not_finite"] == [13]
    assert found["not_finite"] == 1
