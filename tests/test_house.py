"""The house itself: who imports whom, and what a wheel brings."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prefold.convert.checkpoint.files import RUNTIMES

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "cli": {"cli", "common", "convert", "demo", "plan", "runtime", "tree", "verify"},
    "common": {"common"},
    "convert": {"common", "convert", "runtime"},
    "demo": {"demo"},
    "plan": {"common", "plan"},
    "runtime": {"runtime"},
    "tree": {"common", "tree"},
    "verify": {"common", "convert", "runtime", "verify"},
}


def imported_rooms(file: Path) -> set[str]:
    """Return the rooms that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("prefold.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str):
    for file in (ROOT / room).rglob("*.py"):
        assert imported_rooms(file) <= MAY_IMPORT[room], file


def test_the_runtime_module_needs_torch_and_transformers_alone():
    needed = set()
    for name in RUNTIMES:
        nodes = list(ast.walk(ast.parse((ROOT / "runtime" / name).read_text())))
        froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        needed |= {module.split(".")[0] for module in froms | plain}
        beside = {f"{node.module}.py" for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        assert beside <= set(RUNTIMES)
    assert needed - set(sys.stdlib_module_names) == {"torch", "transformers"}


def test_no_code_asks_for_an_architecture_by_name():
    for file in (path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py") if room != "demo"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and "model_type" in ast.dump(node.left):
                assert not any(isinstance(c, ast.Constant) and isinstance(c.value, str) for c in node.comparators), file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build a wheel as pip does, without asking any registry; of a copy, since builds side by side share a folder."""
    out = tmp_path_factory.mktemp("wheel")
    tree = out / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(tree),
    ]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_a_wheel_installs_nothing_beside_prefold(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} <= {
        "prefold",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }


def test_a_wheel_brings_the_demo_checkpoint_and_every_room(wheel: Path):
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    for room in MAY_IMPORT:
        assert {f"prefold/{file.relative_to(ROOT)}" for file in (ROOT / room).rglob("*.py")} <= names
        assert f"prefold/{room}/py.typed" in names
    checkpoint = [info for info in archive.infolist() if info.filename.startswith("prefold/demo/checkpoint/")]
    assert {Path(info.filename).name for info in checkpoint} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert sum(info.file_size for info in checkpoint) <= 8 << 20
    assert "prefold/demo/held_out.txt" in names
