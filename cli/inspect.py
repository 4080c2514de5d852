"""``prefold inspect``."""

from typing import Annotated

import typer

from prefold.cli.options import Json, Revision, takes_fold_options
from prefold.common.errors import UNSUPPORTED
from prefold.convert import FoldOptions


@takes_fold_options(inspected=True)
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id (org/name) or a config.json.")],
    revision: Revision = None,
    options: FoldOptions = FoldOptions(),
    as_json: Json = False,
) -> None:
    """Say what folds, how large the table is, and what that saves; no weights are read or downloaded.

    Example: `prefold inspect EleutherAI/pythia-70m`
    """
    from prefold.cli.show.show import show_inspection, show_json
    from prefold.convert import inspect_checkpoint

    inspection = inspect_checkpoint(model, revision=revision, options=options)
    if as_json:
        show_json(inspection.as_json())
    else:
        show_inspection(inspection)
    if not inspection.foldable:
        raise typer.Exit(UNSUPPORTED)
