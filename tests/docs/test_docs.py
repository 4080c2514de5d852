"""What the documents say: their code runs, their links lead somewhere, what they name exists."""

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from prefold.cli.main import app
from prefold.convert import convert_checkpoint, inspect_checkpoint
from prefold.demo import CHECKPOINT

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
# Which folded checkpoint a page's code takes for granted.
GIVEN = {"README.md": "pythia-70m-folded", "docs/checkpoint-format.md": "folded", "docs/clients.md": "folded"}


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def code(page: str) -> list[str]:
    """Return every command line and every piece of code in running text."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    return [line.partition(" #")[0] for block in blocks(page, "sh") for line in block.splitlines()] + spans


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(str(CHECKPOINT), tmp_path_factory.mktemp("docs") / "folded").out


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_code_runs(page: str, folded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if page in GIVEN:
        shutil.copytree(folded, tmp_path / GIVEN[page])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "documented"}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    made = {
        name: names[name] for name in ("conversion", "verification", "model", "columns", "counted") if name in names
    }
    assert made
    assert all(made[name].passed for name in made.keys() & {"verification"})


def anchors(page: Path) -> set[str]:
    """Return what a link can point to in a page: its headings, as GitHub spells them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text(encoding="utf-8"))
    for link in (link for link in links if "://" not in link):
        file, _, anchor = link.partition("#")
        target = (PAGES[page].parent / file) if file else PAGES[page]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def _options(parameters: list[Any]) -> set[str]:
    return {option for parameter in parameters for option in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}


def _known(command: Any, name: str = "") -> dict[str, set[str]]:
    """Return the options of a command by its name, and of those below it."""
    known = {name: _options(command.params)}
    for word, below in getattr(command, "commands", {}).items():
        known |= _known(below, f"{name} {word}".strip())
    return known


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str):
    known = _known(typer.main.get_command(app))
    for line in code(page):
        called = re.match(r"prefold(?: ([a-z-]+)\b)?(?: ([a-z-]+)\b)?(?= |$)", line)
        if called is None:
            continue
        words = [word for word in called.groups() if word and not word.startswith("-")]
        command = " ".join(words) if " ".join(words) in known else " ".join(words[:1])
        assert command in known, line
        assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known[command], line


@pytest.mark.parametrize("page", PAGES)
def test_options_named_alone_exist(page: str):
    known = set.union(*_known(typer.main.get_command(app)).values())
    for span in code(page):
        named = re.match(r"--[a-z-]+", span)
        assert named is None or named[0] in known, span


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str):
    named = {match[1] for line in code(page) if (match := re.match(r"make ([a-z]+)", line))}
    assert named <= _targets()


def _paths(page: str) -> Iterator[str]:
    rooms = "cli|convert|plan|runtime|verify|demo|tests|benchmarks|docs|[.]ci"
    for line in code(page):
        yield from re.findall(rf"(?<![\w/.])(?:{rooms})/[\w./-]*", line)


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str):
    assert not [path for path in _paths(page) if not (ROOT / path).exists()]


def test_the_command_line_page_is_what_the_commands_say():
    """If not, run ``make docs``."""
    written = runpy.run_path(str(ROOT / "docs" / "write_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == written


def test_the_example_of_the_prefold_section_is_what_a_conversion_writes(folded: Path):
    example = json.loads(blocks("docs/checkpoint-format.md", "json")[0])
    written = json.loads((folded / "config.json").read_text())["prefold"]
    assert example.keys() == written.keys()
    assert example["tensor_sha256"].keys() == written["tensor_sha256"].keys()
    free = {"tensor_sha256", "runtime_sha256", "computed", "versions"}
    assert {key: example[key] for key in example.keys() - free} == {key: written[key] for key in example.keys() - free}


def test_every_file_of_a_folded_checkpoint_is_documented(folded: Path):
    page = PAGES["docs/checkpoint-format.md"].read_text(encoding="utf-8")
    copied = {path.name for path in CHECKPOINT.iterdir()} - {"config.json", "README.md"}
    for path in folded.iterdir():
        assert path.name in copied or f"`{path.name}`" in page


def test_figures_of_the_demo_checkpoint_are_todays():
    page = PAGES["docs/how-it-works.md"].read_text(encoding="utf-8")
    savings = inspect_checkpoint(str(CHECKPOINT)).savings
    assert savings is not None
    (side,) = savings.sides
    widths = side.row_width, side.residual.width
    assert f"`{savings.weights_eliminated:,} / ({widths[0]} - {widths[1]}) = {savings.break_even_batch}`" in page
    columns = [column.width for column in side.columns]
    assert f"{widths[1]} values of residual, {columns[0]} of Q, K and V" in page
    assert f"a row of {widths[0]}" in page


def test_versions_of_clients_are_those_that_tests_run():
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    text = " ".join(PAGES["docs/clients.md"].read_text(encoding="utf-8").split())
    named = re.findall(r"([a-z][a-z-]*) (\d+\.\d+\.\d+)", text)
    known = {name: number for name, number in named if name in pinned}
    assert known.keys() >= {"transformers", "torch", "peft", "sentence-transformers", "fastapi", "uvicorn", "openai"}
    assert [(name, number) for name, number in named if pinned.get(name, number) != number] == []
