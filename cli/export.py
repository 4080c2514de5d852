"""``prefold export``."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefold.cli.options import Json

if TYPE_CHECKING:
    from prefold.export import Exported


class Target(StrEnum):
    """The runtimes that an artefact may be for."""

    onnx = "onnx"
    openvino = "openvino"
    executorch = "executorch"


def export(
    folded: Annotated[Path, typer.Argument(metavar="FOLDED", help="The folded checkpoint, of a decoder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the artefact goes.")],
    to: Annotated[Target, typer.Option("--to", help="The runtime that loads it.")],
    source: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The checkpoint that was folded, if it was a folder.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="The type that the fold was made in: float32 or float16.")] = "float32",
    context: Annotated[
        int | None, typer.Option(min=32, metavar="N", help="Tokens that a text may have; the model's own if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a folded checkpoint for an edge runtime, and prove it there before it appears.

    Example: `prefold export pythia-70m-folded pythia-70m-onnx --to onnx`
    """
    from prefold.cli.show.show import note
    from prefold.export import export_checkpoint

    made = export_checkpoint(folded, out, to=to.value, source=source, dtype=dtype, context=context, progress=note)
    _tell(made, as_json=as_json)


def _tell(made: "Exported", *, as_json: bool) -> None:
    from prefold.cli.show.show import say, show_json, show_verification

    if as_json:
        show_json(made.as_json())
        return
    show_verification(made.verification)
    say(f"exported to {made.out}", "bold")
