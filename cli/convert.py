"""``prefold convert``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefold.cli.options import (
    Adapter,
    Cut,
    DType,
    Json,
    MaxTable,
    MergeResidual,
    Placement,
    QuantizeResidual,
    Revision,
    TableDType,
    TextOnly,
    TrustRemoteCode,
    parse_dtype,
    parse_placement,
    parse_size,
    parse_table_dtype,
)

if TYPE_CHECKING:
    from prefold.convert import Conversion

_LEFT_OUT = 10  # files that are named


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder or a hub id (org/name).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Where the folded checkpoint goes.")],
    revision: Revision = None,
    merge_residual: MergeResidual = False,
    dtype: DType = None,
    device: Annotated[str, typer.Option(help="Where the table is computed: cpu, cuda, mps.")] = "cpu",
    chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to compute at once; chosen by itself if not given.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Repack what is not folded, e.g. 5GB; as in the source if not given.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace OUT, once the new one is verified, and weights in the repository."),
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check it before it appears as OUT.")] = True,
    cut: Cut = "auto",
    max_table: MaxTable = None,
    text_only: TextOnly = False,
    adapter: Adapter = None,
    placement: Placement = "device",
    table_dtype: TableDType = None,
    quantize_residual: QuantizeResidual = False,
    trust_remote_code: TrustRemoteCode = False,
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
    from prefold.cli.show.progress import ShownWatch
    from prefold.cli.show.show import byte_bars, note
    from prefold.convert import Options, convert_checkpoint, open_repository, require_publishable, upload
    from prefold.verify import require_verified

    options = Options(
        merge_residual=merge_residual,
        dtype=parse_dtype(dtype),
        device=device,
        chunk_tokens=chunk_tokens,
        max_shard_size=parse_size(max_shard_size),
        force=force,
        trust_remote_code=trust_remote_code,
        cut=cut,
        max_table=parse_size(max_table, "--max-table"),
        text_only=text_only,
        adapter=adapter,
        placement=parse_placement(placement),
        table_dtype=parse_table_dtype(table_dtype),
        quantize_residual=quantize_residual,
    )
    repository = partial(open_repository, push_to_hub, private=private) if push_to_hub else None
    if push_to_hub:
        require_publishable(push_to_hub, source, private=private, force=force)
    with byte_bars() as bars:
        watch = ShownWatch(bars, repository)
        check = require_verified(adapter=adapter, progress=watch.doing) if verify else None
        conversion = convert_checkpoint(source, out, revision=revision, options=options, check=check, watch=watch)
    uploaded = None
    if push_to_hub:
        note(f"uploading to {push_to_hub}")
        uploaded = upload(out, push_to_hub, private=private, force=force)
    _tell(conversion, uploaded, as_json=as_json)


def _tell(conversion: "Conversion", uploaded: str | None, *, as_json: bool) -> None:
    from prefold.cli.show.show import note, say, show_inspection, show_json, show_verification
    from prefold.verify import Verification

    if as_json:
        show_json(conversion.as_json() | ({"uploaded": uploaded} if uploaded else {}))
        return
    show_inspection(conversion.inspection)
    if isinstance(conversion.verification, Verification):
        show_verification(conversion.verification)
    if conversion.left_out:
        shown, more = conversion.left_out[:_LEFT_OUT], len(conversion.left_out) - _LEFT_OUT
        note(f"left out: {', '.join(shown)}" + (f" and {more} more" if more > 0 else ""))
    say(f"folded into {conversion.out}" + (f" and {uploaded}" if uploaded else ""), "bold")
