"""Options that a folded checkpoint was made with, by its own config; a lie shows as a difference."""

from pathlib import Path
from typing import Any

from prefold.convert import AUTO, DTYPES, PLACEMENTS, TABLE_DTYPES, FoldOptions


def claimed_options(config: dict[str, Any], adapter: Path | None, *, trust_remote_code: bool) -> FoldOptions:
    """Return the options that a folded ``config.json`` was written for."""
    section = config["prefold"]
    found = section.get("folds")
    folds = [fold for fold in found if isinstance(fold, dict)] if isinstance(found, list) else []
    names = [str(fold["name"]) for fold in folds if fold.get("name")]
    placement, (table_dtype, residual) = section.get("placement"), _smaller(folds)
    return FoldOptions(
        merge_residual=any(_merges_residual(fold) for fold in folds),
        dtype=config["dtype"] if config["dtype"] in DTYPES else None,  # else the source's own
        cut=",".join(names) or AUTO,
        text_only=bool(section.get("refused_inputs")),
        adapter=adapter,
        placement=placement if placement in PLACEMENTS else PLACEMENTS[0],
        table_dtype=table_dtype,
        quantize_residual=residual,
        trust_remote_code=trust_remote_code,
    )


def _merges_residual(fold: dict[str, Any]) -> bool:
    try:
        return any(each["into"] == fold["residual"]["module"] for each in fold["merged"])
    except (LookupError, TypeError):
        return False


def _smaller(folds: list[dict[str, Any]]) -> tuple[str | None, bool]:
    """Return the type of columns that are stored smaller, and whether the residual slice is stored so, too."""
    try:
        slices = next(fold["table"]["encoding"]["slices"] for fold in folds if fold["table"]["encoding"])
        residual, column = slices[0]["dtype"], slices[-1]["dtype"]
    except (LookupError, TypeError, StopIteration):
        return None, False
    return (column, residual == column) if column in TABLE_DTYPES else (None, False)
