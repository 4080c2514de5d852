"""``prefold inspect``."""

from typing import Annotated

import typer

from prefold.cli.options import (
    Cut,
    DType,
    Json,
    MaxTable,
    MergeResidual,
    QuantizeResidual,
    Revision,
    TableDType,
    TextOnly,
    TrustRemoteCode,
    parse_dtype,
    parse_size,
    parse_table_dtype,
)
from prefold.common.errors import UNSUPPORTED


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id (org/name) or a config.json.")],
    revision: Revision = None,
    merge_residual: MergeResidual = False,
    dtype: DType = None,
    cut: Cut = "auto",
    max_table: MaxTable = None,
    text_only: TextOnly = False,
    table_dtype: TableDType = None,
    quantize_residual: QuantizeResidual = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Say what folds, how large the table is, and what that saves; no weights are read or downloaded.

    Example: `prefold inspect EleutherAI/pythia-70m`
    """
    from prefold.cli.show.show import show_inspection, show_json
    from prefold.convert import inspect_checkpoint

    inspection = inspect_checkpoint(
        model,
        revision=revision,
        merge_residual=merge_residual,
        dtype=parse_dtype(dtype),
        trust_remote_code=trust_remote_code,
        cut=cut,
        max_table=parse_size(max_table, "--max-table"),
        text_only=text_only,
        table_dtype=parse_table_dtype(table_dtype),
        quantize_residual=quantize_residual,
    )
    if as_json:
        show_json(inspection.as_json())
    else:
        show_inspection(inspection)
    if not inspection.foldable:
        raise typer.Exit(UNSUPPORTED)
