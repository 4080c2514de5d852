"""Options that several commands share."""

from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefold.common.errors import UsageError
from prefold.common.units import parse_bytes
from prefold.convert import DTYPES, FoldOptions, flag

if TYPE_CHECKING:
    import torch

Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub; resolved once, to a commit.", metavar="REV")
]
DType = Annotated[str | None, typer.Option(help="Run in another type: float32, bfloat16 or float16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the source brings. Read it first.")
]
Adapter = Annotated[
    Path | None, typer.Option(metavar="PATH", help="The LoRA that was merged into the table where modules fold.")
]
Isolated = Annotated[
    bool,
    typer.Option("--isolated", help="Start every process anew that measures, instead of forking it from one. Slower."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def takes_fold_options(*, inspected: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take the fields of ``FoldOptions`` as its options, and get them as one, ``options``.

    ``inspected``: those alone that change what ``prefold inspect`` prints.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        chosen = [each for each in fields(FoldOptions) if each.metadata["inspected"] or not inspected]
        parameters = dict(signature(command, eval_str=True).parameters)
        del parameters["options"]
        last = [parameters.pop("as_json")]
        given = [*parameters.values(), *map(_parameter, chosen), *last]

        @wraps(command)
        def run(**values: Any) -> None:
            options = FoldOptions(**{each.name: values.pop(each.name) for each in chosen})
            command(**values, options=options)

        run.__signature__ = Signature(given)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in given}
        return run

    return decorate


def _parameter(option: Field[Any]) -> Parameter:
    kind, metavar = option.type, option.metadata["metavar"]
    how: dict[str, Any] = {"help": option.metadata["help"], "metavar": metavar}
    if metavar == "SIZE":
        how["parser"] = parse_size
    elif kind == int | None:
        how["min"] = 1
    annotation = Annotated[kind, typer.Option(flag(option.name), **how)]  # type: ignore[valid-type]
    return Parameter(option.name, Parameter.POSITIONAL_OR_KEYWORD, default=option.default, annotation=annotation)


def parse_dtype(name: str | None) -> "torch.dtype | None":
    """Return the torch dtype of that name; None for None."""
    if name is None:
        return None
    if name not in DTYPES:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(DTYPES)}", param_hint="--dtype")
    import torch

    return getattr(torch, name)  # type: ignore[no-any-return]


def require_page(file: Path | None) -> None:
    """Refuse, before any work, a report that is no page."""
    if file is not None and file.suffix not in (".html", ".md"):
        raise typer.BadParameter(f"{file} is no page, .html or .md", param_hint="--report")


def parse_size(text: str) -> int:
    """Return the bytes that ``5GB`` or ``200MiB`` means."""
    try:
        size = parse_bytes(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error
    if size <= 0:
        raise typer.BadParameter(f"{text!r} holds nothing")
    return size
