"""``prefold hardware``."""

from typing import Annotated

import typer

from prefold.cli.options import Json
from prefold.cli.plan_inputs import open_chip


def hardware(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Show one, or that of a TOML file, with the source of each figure.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the chips that `prefold plan` knows by name.

    Example: `prefold hardware tpu-v4`
    """
    from prefold.cli.show.catalogue import chip_json, show_chip, show_chips
    from prefold.cli.show.show import show_json
    from prefold.plan import catalogue

    if name:
        chip, _ = open_chip(name)
        show_json(chip_json(chip)) if as_json else show_chip(chip)
        return
    chips = list(catalogue().values())
    show_json({"hardware": [chip_json(chip) for chip in chips]}) if as_json else show_chips(chips)
