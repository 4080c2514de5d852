"""``prefold shapes``."""

from typing import Annotated

import typer

from prefold.cli.options import Json, Revision
from prefold.cli.plan_inputs import open_shape


def shapes(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="Show one, with its source: a name, a folder, a config.json or a hub id."
        ),
    ] = "",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """List the shapes of models that `prefold plan` knows by name.

    Example: `prefold shapes palm-540b`
    """
    from prefold.cli.show.catalogue import shape_json, show_shape, show_shapes
    from prefold.cli.show.show import show_json
    from prefold.plan import presets

    if model:
        shape = open_shape(model, revision)
        show_json(shape_json(shape)) if as_json else show_shape(shape)
        return
    known = list(presets().values())
    show_json({"shapes": [shape_json(shape) for shape in known]}) if as_json else show_shapes(known)
