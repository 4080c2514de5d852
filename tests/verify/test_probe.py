"""The process that measures: what it loads, and what it says of rows."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prefold.convert.table import table_rows
from prefold.verify.job import NEW_TOKENS, Job, load_figures
from prefold.verify.probe import left_padded
from prefold.verify.rows import RowCount, measure_rows
from tests.conftest import load
from tests.verify.conftest import Pair
from tests.verify.faults import folded_cut

_RUN = """
import sys
from pathlib import Path
from typing import Any
from prefold.verify.probe import main
main(Path(sys.argv[1]))
print(*sorted(name for name in sys.modules if name.startswith("prefold.runtime")))
"""


def test_it_runs_the_module_in_the_checkpoint_and_never_imports_the_runtime(llama: Pair, tmp_path: Path):
    job = Job(
        str(llama.folded), "float32", "AutoModelForCausalLM", [[5, 6, 7], [8]], continued=[5, 6, 7] + [9] * NEW_TOKENS
    )
    job.save(tmp_path)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _RUN, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loading = load_figures(tmp_path)["loading"]
    assert loading["module"].startswith("transformers_modules.")
    assert loading["module"].endswith(".modeling_prefold")
    assert loading["class"] == "PrefoldLlamaForCausalLM"
    assert [loading[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched")] == [[], [], []]
    assert done.stdout.strip() == ""


def test_a_job_survives_being_saved(tmp_path: Path):
    job = Job(
        "folder", "bfloat16", "AutoModel", [[1, 2]], continued=[3], table_folder="other", made={"x.weight": "y.weight"}
    )
    job.save(tmp_path)
    assert Job.load(tmp_path) == job


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
