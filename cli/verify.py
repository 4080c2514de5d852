"""``prefold verify``."""

from pathlib import Path
from typing import Annotated

import typer

from prefold.cli.options import Adapter, Isolated, Json, Revision, TrustRemoteCode, require_page
from prefold.common.errors import UNVERIFIED


def verify(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The checkpoint that was folded: a folder or a hub id.")
    ],
    folded: Annotated[Path, typer.Argument(metavar="FOLDED", help="The folded checkpoint.")],
    revision: Revision = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt per line.", metavar="FILE")] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Also time both in turn.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the report as a page: .html or .md.", metavar="FILE")
    ] = None,
    adapter: Adapter = None,
    isolated: Isolated = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Check a folded checkpoint against its source: files, every row, logits, greedy tokens, bytes read.

    Example: `prefold verify EleutherAI/pythia-70m pythia-70m-folded --report report.html`
    """
    require_page(report)
    from prefold.verify import shared_server

    if not isolated:
        shared_server()  # what it imports, it imports while this process does
    from prefold.cli.show.show import note, say, show_json, show_verification
    from prefold.verify import read_prompts, verify_checkpoint, write_report

    verification = verify_checkpoint(
        source,
        folded,
        revision=revision,
        texts=read_prompts(prompts) if prompts else None,
        speed=speed,
        trust_remote_code=trust_remote_code,
        adapter=adapter,
        isolated=isolated,
        progress=note,
    )
    if report:
        write_report(verification, report)
    if as_json:
        show_json(verification.as_json())
    else:
        show_verification(verification)
        failed = ", ".join(verification.failed)
        say(
            "verified" if verification.passed else f"not verified: {failed}",
            "bold" if verification.passed else "bold red",
        )
    if not verification.passed:
        raise typer.Exit(UNVERIFIED)
