"""``prefold convert``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefold.cli.options import Json, Revision, takes_fold_options
from prefold.convert import FoldOptions

if TYPE_CHECKING:
    from prefold.convert import Conversion

_NAMED = 10  # of files that were left out, and of names that index and shards disagree about


@takes_fold_options()
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder or a hub id (org/name).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the folded checkpoint goes.")],
    revision: Revision = None,
    options: FoldOptions = FoldOptions(),
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check it before it appears as OUT.")] = True,
    push_to_hub: Annotated[str | None, typer.Option(metavar="REPO", help="Upload the result as org/name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: Json = False,
) -> None:
    """Fold a checkpoint: write one that looks its first layer up, and verify it before it appears.

    Example: `prefold convert EleutherAI/pythia-70m pythia-70m-folded`
    """
    from prefold.verify import shared_server

    if verify:
        shared_server()  # what it imports, it imports while this process does
    from prefold.cli.show.progress import ShownProgress
    from prefold.cli.show.show import byte_bars, note
    from prefold.convert import convert_checkpoint, open_repository, require_publishable, upload
    from prefold.verify import require_verified

    repository = partial(open_repository, push_to_hub, private=private) if push_to_hub else None
    if push_to_hub:
        require_publishable(push_to_hub, source, private=private, force=options.force)
    with byte_bars() as bars:
        shown = ShownProgress(bars, repository)
        check = require_verified(progress=shown.doing) if verify else None
        conversion = convert_checkpoint(source, out, revision=revision, options=options, check=check, progress=shown)
    uploaded = None
    if push_to_hub:
        note(f"uploading to {push_to_hub}")
        uploaded = upload(out, push_to_hub, private=private, force=options.force)
    _tell(conversion, uploaded, as_json=as_json)


def _tell(conversion: "Conversion", uploaded: str | None, *, as_json: bool) -> None:
    from prefold.cli.show.show import note, say, show_inspection, show_json, show_verification, show_written
    from prefold.verify import Verification

    if as_json:
        show_json(conversion.as_json() | ({"uploaded": uploaded} if uploaded else {}))
        return
    show_inspection(conversion.inspection)
    if isinstance(conversion.verification, Verification):
        show_verification(conversion.verification)
    for what, names in (("left out", conversion.left_out), ("loaded as transformers does", conversion.notes)):
        if names:
            more = len(names) - _NAMED
            note(f"{what}: {', '.join(names[:_NAMED])}" + (f" and {more} more" if more > 0 else ""))
    show_written(conversion.written)
    say(f"folded into {conversion.out}" + (f" and {uploaded}" if uploaded else ""), "bold")
