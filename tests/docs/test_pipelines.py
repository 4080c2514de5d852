"""The examples of docs/pipelines.md, run as they stand there, on small checkpoints."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import random_model, small_config

PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
NAMES = ("small", "large")
# What a job runs a step with, if its shell is bash.
BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]


def example(language: str) -> str:
    """Return the only block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def report(folder: Path, name: str) -> Path:
    return folder / "folded" / name / "prefold.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``models/small`` and ``models/large``."""
    folder = tmp_path_factory.mktemp("pipelines")
    for layers, name in enumerate(NAMES, 2):
        random_model(small_config("llama", num_hidden_layers=layers)).save_pretrained(folder / "models" / name)
    return folder


@pytest.fixture(scope="module")
def made(models: Path) -> Path:
    """Return the folder after the Makefile's rule has folded both."""
    (models / "Makefile").write_text(example("make"))
    done = run(["make"], models)
    assert done.returncode == 0, done.stderr
    return models


def test_make_folds_what_changed_and_nothing_else(made: Path):
    before = {name: report(made, name).stat().st_mtime_ns for name in NAMES}
    assert "Nothing to be done" in run(["make"], made).stdout
    later = time.time() + 5  # than the report, whatever the clock of the file system rounds to
    os.utime(made / "models" / "small" / "model.safetensors", (later, later))
    assert "models/large" not in run(["make", "--dry-run"], made).stdout
    assert run(["make"], made).returncode == 0
    after = {name: report(made, name).stat().st_mtime_ns for name in NAMES}
    assert (after["small"] > before["small"], after["large"] == before["large"]) == (True, True)
    os.utime(made / "models" / "small" / "model.safetensors", (0, 0))


@pytest.mark.exhaustive
def test_make_fails_and_keeps_the_older_one_where_the_new_one_cannot_be(made: Path, tmp_path: Path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    older = report(tmp_path, "small").read_bytes()
    weights = tmp_path / "models" / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    later = time.time() + 5
    os.utime(weights, (later, later))
    done = run(["make"], tmp_path)
    assert done.returncode == 2
    assert "Error 1" in done.stderr
    assert report(tmp_path, "small").read_bytes() == older


def steps() -> dict[str, str]:
    """Return the steps of the job that run something, by their names, but for the installation."""
    (job,) = yaml.safe_load(example("yaml"))["jobs"].values()
    return {step["name"]: step["run"] for step in job["steps"] if "run" in step and step["name"] != "Install"}


def step(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "step.sh").write_text(steps()[name])
    return run([*BASH, "step.sh"], folder)


@pytest.mark.exhaustive
def test_a_job_passes_where_a_folded_checkpoint_is_right(made: Path):
    assert yaml.safe_load(example("yaml"))["defaults"]["run"]["shell"] == "bash"
    for name in steps():
        done = step(name, made)
        assert done.returncode == 0, (name, done.stderr)
    assert json.loads((made / "verification.json").read_text())["passed"] is True


def test_a_job_fails_where_verification_does(made: Path, tmp_path: Path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    table = tmp_path / "folded" / "small" / "prefold_table.safetensors"
    content = bytearray(table.read_bytes())
    content[-7] ^= 64
    table.write_bytes(content)
    assert step("Verify", tmp_path).returncode == 5
    assert json.loads((tmp_path / "verification.json").read_text())["passed"] is False


def test_a_job_fails_where_logits_are_only_close(made: Path, tmp_path: Path):
    told = {"passed": True, "checks": {"logits": {"passed": True, "prefill": {"max_abs": 0.25}}}}
    (tmp_path / "verification.json").write_text(json.dumps(told))
    done = step("Require equal logits", tmp_path)
    assert (done.returncode, done.stderr) == (1, "logits are 0.25 apart\n")


@pytest.fixture
def listed(models: Path, tmp_path: Path) -> Path:
    """Return a folder with the models, the list and the script."""
    shutil.copytree(models / "models", tmp_path / "models")
    (tmp_path / "list.txt").write_text(example("text"))
    (tmp_path / "fold-list.sh").write_text(example("sh"))
    return tmp_path


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_a_list_folds_with_gnu_parallel(listed: Path):
    (line,) = re.findall(r"^  `(parallel .*?)`;$", PAGE, re.MULTILINE)
    script = example("sh")
    (listed / "fold-list.sh").write_text(script[: script.index("xargs")] + line + "\n")
    done = fold_list(listed, 2)
    said = done.communicate()
    assert done.returncode == 0, said
    assert sorted(os.listdir(listed / "folded")) == ["large", "small"]
    again = fold_list(listed, 2)
    assert again.communicate()[0] == ""
    assert again.returncode == 0


def fold_list(folder: Path, jobs: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "fold-list.sh", "list.txt", str(jobs)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(running: subprocess.Popen[str], path: Path) -> None:
    while not path.exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


@pytest.mark.exhaustive
def test_a_list_that_was_killed_goes_on_where_it_was(listed: Path):
    running = fold_list(listed, 1)
    until(running, listed / "folded" / ".large.prefold")
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    finished = report(listed, "small").stat()
    assert sorted(os.listdir(listed / "folded")) == [".large.prefold", "small"]
    again = fold_list(listed, 1)
    said = again.communicate()
    assert again.returncode == 0, said
    assert sorted(os.listdir(listed / "folded")) == ["large", "small"]
    assert (report(listed, "small").stat().st_ino, report(listed, "small").stat().st_mtime_ns) == (
        finished.st_ino,
        finished.st_mtime_ns,
    )
    assert json.loads(report(listed, "large").read_text())["verification"]["passed"] is True
    third = fold_list(listed, 1)
    out, err = third.communicate()
    assert (third.returncode, out, err) == (0, "", "")


def test_a_list_folds_side_by_side_and_tells_of_those_that_failed(listed: Path):
    (listed / "models" / "small" / "config.json").write_text("{}")
    running = fold_list(listed, 2)
    _, err = running.communicate()
    assert running.returncode == 123
    assert "prefold:" in err
    assert os.listdir(listed / "folded") == ["large"]


def test_every_job_of_a_list_has_a_share_of_the_memory():
    limit = next(line for line in example("sh").splitlines() if line.startswith("ulimit -d"))
    command = f"free=1000; set -- list.txt 4; {limit}\nulimit -d"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "125\n"  # 1000 kB, of four jobs with two processes each
