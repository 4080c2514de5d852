"""Write docs/cli.md from the commands' own help: ``python docs/write_cli.py``, or ``make docs``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from prefold.cli.main import app

PAGE = Path(__file__).parent / "cli.md"
_HEAD = "<!-- Written by `make docs` from the commands' own help. Change that, not this. -->\n\n# Command line"
_EXAMPLE, _CODES = "Example: ", "Exit codes: "


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in command.help.split("\n\n")]


def _table(headings: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """Lay out two columns, the first as code; empty where there are no rows."""
    bar = r"\|"  # in a table's cell a bare bar would begin the next cell
    lines = [f"| `{first.replace('|', bar)}` | {second.replace('|', bar)} |" for first, second in rows]
    return "\n".join([f"| {headings[0]} | {headings[1]} |", "|---|---|", *lines]) if lines else ""


def _codes(paragraph: str) -> str:
    """Turn the sentence that lists the exit codes into a table."""
    codes = re.findall(r"(\d) (.+?)(?=, \d|\.$)", paragraph.removeprefix(_CODES))
    return "## Exit codes\n\n" + _table(("code", "meaning"), codes)


def _records(context: Any, kind: str) -> list[tuple[str, str]]:
    parameters = [p for p in context.command.get_params(context) if p.param_type_name == kind]
    records = [parameter.get_help_record(context) for parameter in parameters]
    return [(name, " ".join(text.split())) for name, text in filter(None, records)]


def _parameters(context: Any) -> Iterator[str]:
    yield f"```text\n{' '.join(context.command.get_usage(context).removeprefix('Usage: ').split())}\n```"
    yield _table(("argument", "meaning"), _records(context, "argument"))
    yield _table(("option", "meaning"), _records(context, "option"))


def _command_parts(name: str, command: Any) -> Iterator[str]:
    yield f"## {name}"
    for paragraph in _paragraphs(command):
        example = paragraph.removeprefix(_EXAMPLE).strip("`")
        yield f"```sh\n{example}\n```" if paragraph.startswith(_EXAMPLE) else paragraph
    yield from _parameters(command.make_context(name, [], resilient_parsing=True))


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, those of a group in its place."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def _parts() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    context = group.make_context("prefold", [], resilient_parsing=True)
    about, commands = _paragraphs(group), list(_commands(group, "prefold"))
    yield _HEAD
    yield from (paragraph for paragraph in about if not paragraph.startswith(_CODES))
    yield from _parameters(context)
    yield _table(("command", "what it does"), [(name, _paragraphs(command)[0]) for name, command in commands])
    for name, command in commands:
        yield from _command_parts(name, command)
    yield from (_codes(paragraph) for paragraph in about if paragraph.startswith(_CODES))


def page() -> str:
    """Return docs/cli.md as it should be."""
    return "\n\n".join(part for part in _parts() if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
