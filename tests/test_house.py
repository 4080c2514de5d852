"""The house itself: who imports whom, and what a wheel brings."""

import ast
import shutil
import subprocess
import sys
import zipfile
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

from prefold.convert.checkpoint.files import RUNTIMES

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "cli": {"cli", "common", "convert", "demo", "export", "plan", "runtime", "tree", "verify"},
    "common": {"common"},
    "convert": {"common", "convert", "runtime"},
    "demo": {"demo"},
    "export": {"common", "convert", "export", "runtime", "verify"},
    "plan": {"common", "plan"},
    "runtime": {"runtime"},
    "tree": {"common", "tree"},
    "verify": {"common", "convert", "runtime", "verify"},
}


# Others take from their modules: the runtime travels by file, and a demo has one thing to run.
BY_MODULE = {"common", "runtime", "demo"}
# Of a room, what every floor may import.
GROUND = {"convert": {"errors", "options"}, "plan": {"errors"}, "tree": {"errors"}, "verify": {"checks", "page"}}
# The deepest way within a folder: generate, passes, tree_cache, step, live, pool.
MOST_FILES, MOST_LINES, DEEPEST, MOST_COMPLEX = 16, 350, 6, 12


def modules(room: str) -> dict[str, Path]:
    """Return a room's files by the name that they are imported by."""
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / room).rglob("*.py")}
    return {f"prefold.{name.removesuffix('.__init__')}": file for file, name in names.items()}


def imports(file: Path) -> list[tuple[str, list[str]]]:
    """Return the modules of ours that a file imports from, wherever in it, and which names."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    return [(node.module, [each.name for each in node.names]) for node in nodes if node.module.startswith("prefold.")]


def needed(room: str) -> dict[str, set[str]]:
    """Return which modules of a room each of them imports; what a package shows counts as the package."""
    known = modules(room)
    found: dict[str, set[str]] = {}
    for name, file in known.items():
        parts = {f"{module}.{each}" for module, names in imports(file) for each in names}
        found[name] = ({module for module, _ in imports(file)} | parts) & known.keys() - {name}
    return found


def folder(name: str, known: dict[str, Path]) -> str:
    return name if known[name].name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str):
    for file in modules(room).values():
        assert {module.split(".")[1] for module, _ in imports(file)} <= MAY_IMPORT[room], file


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_takes_from_another_what_that_shows(room: str):
    known = {name: file for each in MAY_IMPORT for name, file in modules(each).items()}
    for file in modules(room).values():
        for module, names in imports(file):
            if module.split(".")[1] in BY_MODULE | {room}:
                continue
            assert known[module].name == "__init__.py", (file, module)
            shown = {ast.unparse(each) for each in ast.walk(ast.parse(known[module].read_text()))}
            assert {repr(name) for name in names} <= shown, (file, module)


@pytest.mark.parametrize("room", ["convert", "export", "plan", "runtime", "tree", "verify"])
def test_what_a_room_shows_is_there(room: str):
    shown = import_module(f"prefold.{room}")
    assert [name for name in shown.__all__ if not hasattr(shown, name)] == []


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_circle_and_no_long_way_down(room: str):
    """Rooms within a room are floors, too: what one uses does not use it."""
    known, below = modules(room), needed(room)
    ground = {f"prefold.{room}.{name}" for name in GROUND.get(room, ())}
    inner = {name: {each for each in below[name] if known[each].name != "__init__.py"} for name in below}
    floors: dict[str, set[str]] = {}
    within: dict[str, set[str]] = {}
    for name, others in below.items():
        if known[name].name != "__init__.py" and name not in ground:
            within.setdefault(folder(name, known), set()).add(name)
            floors.setdefault(folder(name, known), set()).update(folder(each, known) for each in others - ground)
    floors = {name: others - {name} for name, others in floors.items()}
    assert depth(floors)  # raises where there is a circle
    assert depth(inner)
    for name in floors:
        inside = {each: inner[each] & within[name] for each in within[name]}
        assert depth(inside) <= DEEPEST, name


def depth(graph: dict[str, set[str]]) -> int:
    """Return how many lie on the longest way down; CycleError where there is a circle."""
    deep: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        deep[name] = 1 + max((deep[each] for each in graph.get(name, ())), default=0)
    return max(deep.values(), default=1)


def test_a_circle_is_seen():
    with pytest.raises(CycleError):
        depth({"one": {"two"}, "two": {"one"}})
    assert depth({"one": {"two"}, "two": {"three"}}) == 3


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_folders_and_files_are_of_a_size_to_be_read(room: str):
    files = list(modules(room).values())
    for each in {file.parent for file in files}:
        assert len(list(each.glob("*.py"))) <= MOST_FILES, each
    for file in files:
        assert len(file.read_text().splitlines()) <= MOST_LINES, file


_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert, ast.comprehension, ast.match_case)


def complexity(function: ast.AST) -> int:
    """Return McCabe's number of a function, with comprehensions and their conditions, and without functions inside."""
    count, left = 1, list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        count += isinstance(node, _BRANCHES)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return count


def test_complexity_counts_comprehensions():
    tree = ast.parse("def f(x):\n if x and x > 1: return [y for y in x if y]\n return 0")
    assert complexity(tree.body[0]) == 5


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_functions_are_simple(room: str):
    for file in modules(room).values():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert complexity(node) <= MOST_COMPLEX, (file, node.name, complexity(node))


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
