"""Folded checkpoints whose tables lie in different places, for tests that compare these."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from prefold.convert.checkpoint.files import TABLE
from tests.conftest import load

PLACEMENTS = ("device", "host", "disk")
ELSEWHERE = ("host", "disk")
TABLE_FILE = TABLE


def load_each(folder: Path, **options: Any) -> dict[str, Any]:
    """Load a checkpoint once for each placement."""
    return {placement: load(folder, prefold_placement=placement, **options) for placement in PLACEMENTS}


def tables(model: PreTrainedModel) -> list[Any]:
    """Return the modules that look rows up."""
    return [model.get_submodule(fold["table"]["module"]) for fold in model.config.prefold["folds"]]


def table_keys(model: PreTrainedModel) -> list[str]:
    """Return the names that tables have in the model's state."""
    return [f"{table.name}.weight" for table in tables(model)]


def flip_byte(path: Path, at: int = -1) -> None:
    """Change one byte of a file, in place, from its end if negative."""
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        (byte,) = file.read(1)
        file.seek(at, 2 if at < 0 else 0)
        file.write(bytes([byte ^ 1]))


def run_cases(folder: Path, cases: dict[str, list[Any]], small: list[Path]) -> tuple[dict[str, Any], str]:
    """Run cases of ``placed.py``; returns what they saw, and what the program said on its way."""
    (folder / "job.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("placed.py")
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(folder / "job.json"), str(folder / "seen.json"), *map(str, small)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((folder / "seen.json").read_text())
    assert not seen.pop("prefold")
    assert not [told for told in seen.values() if "failed" in told], seen
    return seen, done.stderr
