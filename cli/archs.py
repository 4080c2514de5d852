"""``prefold archs``."""

import json
from importlib.resources import files
from typing import Annotated, Any

import typer

from prefold.cli.options import Json


def archs(
    pattern: Annotated[
        str, typer.Argument(metavar="[PART]", help="Show only types whose name contains this, e.g. gemma.")
    ] = "",
    task: Annotated[str | None, typer.Option(help="Show only one task: causal, masked or seq2seq.")] = None,
    as_json: Json = False,
) -> None:
    """Show which model types of transformers fold, as it was measured on small models, and why others do not.

    Example: `prefold archs gemma`
    """
    from prefold.cli.show.show import say, show_coverage, show_json

    measured: dict[str, dict[str, Any]] = json.loads(files("prefold.cli").joinpath("coverage.json").read_text())
    tasks = list(dict.fromkeys(result["task"] for result in measured.values()))
    if task is not None and task not in tasks:
        raise typer.BadParameter(f"{task!r} is none of {', '.join(tasks)}", param_hint="--task")
    shown = [r for r in measured.values() if pattern in r["model_type"] and task in (None, r["task"])]
    if as_json:
        show_json({"types": shown})
    elif shown:
        show_coverage(shown)
    else:
        say(f"no type is called {pattern}: `prefold inspect` tries any model", "yellow")
