"""What a folded checkpoint says of how it was made. Where it does not say it in full, a fold made so will differ."""

from typing import Any

import torch

from prefold.convert.fold.encoding import Encoding, Smaller
from prefold.convert.study import AUTO, Wanted


def claimed_placement(section: dict[str, Any]) -> str:
    """Return where tables are to lie."""
    # Importing the runtime registers folded types with transformers; only who needs it should cause that.
    from prefold.runtime.storage_prefold import PLACEMENTS

    said = section.get("placement")
    return said if said in PLACEMENTS else PLACEMENTS[0]


def claimed_fold(section: dict[str, Any], dtype: torch.dtype) -> Wanted:
    """Return what a model of ``dtype`` was folded as."""
    said = section.get("folds")
    folds = [fold for fold in said if isinstance(fold, dict)] if isinstance(said, list) else []
    names = [str(fold["cut"]) for fold in folds if fold.get("cut")]
    merged = any(fold.get("merged") for fold in folds)
    return Wanted(merge_residual=merged, cut=",".join(names) or AUTO, dtype=dtype, smaller=_smaller(folds, dtype))


def _smaller(folds: list[dict[str, Any]], dtype: torch.dtype) -> Smaller | None:
    try:
        encodings = [Encoding.read(fold["table"]["stored"]) for fold in folds if fold["table"]["stored"]]
        found = encodings[0].smaller if encodings else None
    except (KeyError, TypeError, IndexError):
        return None
    return found if found and found.dtype.itemsize < dtype.itemsize else None
