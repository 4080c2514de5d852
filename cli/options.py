"""Options that several commands share."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub; resolved once, to a commit.", metavar="REV")
]
MergeResidual = Annotated[
    bool,
    typer.Option(
        help="Store a parallel block's FFN as part of the residual slice (the paper's layout): a fifth less table,"
        " no longer equal to the last bit."
    ),
]
DType = Annotated[str | None, typer.Option(help="Run and store in another type: float32, bfloat16 or float16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option(help="Run code that the source brings, and let it go along. Read it first.")
]
Cut = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Which modules to store, as `inspect` lists them; auto takes what saves most reads."
    ),
]
MaxTable = Annotated[
    str | None, typer.Option(metavar="SIZE", help="With --cut auto, store no more than this, e.g. 2GB.")
]
TextOnly = Annotated[
    bool,
    typer.Option(
        "--text-only", help="Fold a model that takes images or sounds, too; it will then take token ids alone."
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A LoRA of the source: merged into the table where modules fold, kept in OUT/adapter where they do not.",
    ),
]
TableDType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Store columns smaller: int8, float8_e4m3fn or bfloat16. No longer equal; the error is measured and"
        " printed. As values of the model's own type if not given.",
    ),
]
QuantizeResidual = Annotated[
    bool, typer.Option("--quantize-residual", help="With --table-dtype, store the residual slice so, too.")
]
Placement = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="Where the table is to lie when the result runs: device, host (memory) or disk (mapped from its file)."
        " Who loads it may choose another place.",
    ),
]
Isolated = Annotated[
    bool,
    typer.Option("--isolated", help="Start every process anew that measures, instead of forking it from one. Slower."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_dtype(name: str | None) -> "torch.dtype | None":
    """Return the torch dtype of that name; None for None."""
    if name is None:
        return None
    import torch

    known = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    return known[_one_of(known, name, "--dtype")]


def parse_table_dtype(name: str | None) -> "torch.dtype | None":
    """Return the torch dtype that columns are to be stored in; None for None."""
    if name is None:
        return None
    from prefold.convert.fold.encoding import TABLE_DTYPES

    dtype: torch.dtype = TABLE_DTYPES[_one_of(TABLE_DTYPES, name, "--table-dtype")]
    return dtype


def parse_placement(name: str) -> str:
    """Return the placement of that name."""
    from prefold.runtime.storage_prefold import PLACEMENTS

    return _one_of(PLACEMENTS, name, "--placement")


def _one_of(known: Collection[str], name: str, option: str) -> str:
    if name not in known:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return name


def require_page(file: Path | None) -> None:
    """Refuse, before any work, a report that is no page."""
    if file is not None and file.suffix not in (".html", ".md"):
        raise typer.BadParameter(f"{file} is no page, .html or .md", param_hint="--report")


def parse_size(text: str | None, option: str = "--max-shard-size") -> int | None:
    """Return the bytes that ``5GB`` or ``200MiB`` means; None for None."""
    if text is None:
        return None
    unit = text.strip().lstrip("0123456789. ").upper()
    number = text.strip()[: len(text.strip()) - len(unit)]
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"{text!r} is no size such as 5GB or 200MiB", param_hint=option) from error
    if size <= 0:
        raise typer.BadParameter(f"{text!r} holds nothing", param_hint=option)
    return size
