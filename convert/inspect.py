"""What folding a model would give and cost, told without reading a weight."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from prefold.convert.checkpoint.source import Source, open_config
from prefold.convert.errors import UnsupportedModel
from prefold.convert.fold.encoding import asked_for
from prefold.convert.fold.quantized import method_of
from prefold.convert.fold.reads import Reads
from prefold.convert.prepare import prepare
from prefold.convert.study import AUTO, Wanted
from prefold.convert.worth import Worth, weigh

# Below this part of the bytes read per token a run cannot tell the folded model from its source by its speed.
WORTH_IT = 0.01


@dataclass(frozen=True)
class Inspection:
    """The answer to ``prefold inspect``.

    Attributes:
        model: what was inspected.
        revision: its commit on the hub.
        reasons: why it does not fold; empty where it does.
        worth: the figures, where it folds.
    """

    model: str
    revision: str | None
    reasons: list[str]
    worth: Worth | None = None

    @property
    def foldable(self) -> bool:
        """Whether anything folds."""
        return self.worth is not None

    @property
    def verdict(self) -> str:
        """Say in one line whether folding is worth its bytes."""
        if self.worth is None:
            return "does not fold: " + "; ".join(self.reasons)
        saving = self.worth.reads[0].model_saving
        growth = self.worth.checkpoint_after - self.worth.checkpoint_before
        what = f"{saving:.1%}".replace("%", " %") + f" of the bytes read {self.worth.step}"
        price = f"{growth / 1e9:+.2f} GB" if abs(growth) >= 1e7 else f"{growth / 1e6:+.2f} MB"
        return f"saves {what} for {price}" if saving >= WORTH_IT else f"not worth it: {price} for {what}"

    def as_json(self) -> dict[str, Any]:
        """Return the figures under the names that other programs rely on."""
        told: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "foldable": self.foldable,
            "reasons": self.reasons,
        }
        if self.worth is not None:
            told |= _worth_json(self.worth)
        return told | {"verdict": self.verdict}


def _worth_json(worth: Worth) -> dict[str, Any]:
    itemsize = worth.dtype.itemsize
    paper = worth.paper
    rows = worth.sides[0].rows
    return {
        "dtype": str(worth.dtype).removeprefix("torch."),
        "step": worth.step,
        "exact": worth.exact,
        "table_dtype": worth.table_dtype,
        "note": worth.note,
        "sides": [asdict(side) for side in worth.sides],
        "unfolded": worth.unfolded,
        "cuts": [asdict(cut) for cut in worth.cuts],
        "modules": [asdict(module) for module in worth.modules],
        "weights_eliminated": worth.weights_eliminated,
        "table_bytes": worth.table_bytes,
        "layouts": {
            name: {"row_width": width, "bytes": rows * width * itemsize} for name, width in worth.layouts.items()
        },
        "checkpoint_bytes": {"before": worth.checkpoint_before, "after": worth.checkpoint_after},
        "reads": [reads_json(reads, itemsize) for reads in worth.reads],
        "break_even_batch": worth.break_even_batch,
        "paper": {
            "weights_eliminated": paper.weights_eliminated,
            "embedding_memory_increase": paper.embedding_memory_increase,
            "weights_memory_decrease": paper.weights_eliminated,
            "net_memory_change": paper.net_memory_change,
            "relative_to_total": paper.relative_to_total,
            "reads": [{"batch": r.batch, "before": r.before, "after": r.after, "ratio": r.ratio} for r in paper.reads],
        },
    }


def reads_json(reads: Reads, itemsize: int) -> dict[str, Any]:
    """Spell reads in values and, under the same names with ``_bytes``, in bytes."""
    values = {
        "first_layer_before": round(reads.first_layer_before),
        "first_layer_after": round(reads.first_layer_after),
        "model_before": round(reads.model_before),
        "model_after": round(reads.model_after),
    }
    return {
        "batch": reads.batch,
        **values,
        **{f"{name}_bytes": value * itemsize for name, value in values.items()},
        "first_layer_ratio": reads.first_layer_ratio,
        "model_saving": reads.model_saving,
    }


def inspect_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    merge_residual: bool = False,
    dtype: torch.dtype | None = None,
    cut: str = AUTO,
    max_table: int | None = None,
    trust_remote_code: bool = False,
    text_only: bool = False,
    table_dtype: torch.dtype | None = None,
    quantize_residual: bool = False,
) -> Inspection:
    """Say what folding would give and cost, from the config alone.

    ``model`` is a folder, a ``config.json`` or a hub id. ``cut`` and ``max_table``, in bytes, are as for a
    conversion, and so are ``table_dtype`` and ``quantize_residual``.

    Raises:
        UsageError: there is no such checkpoint.
        HubError: the hub did not answer.
    """
    source: Source | None = None

    def wanted(dtype: torch.dtype) -> Wanted:
        limit = None if max_table is None else max_table // dtype.itemsize
        smaller = asked_for(table_dtype, residual=quantize_residual)
        return Wanted(merge_residual, cut, limit, dtype, smaller)

    try:
        source = open_config(model, revision)
        known = prepare(source, wanted, dtype=dtype, trust_remote_code=trust_remote_code, text_only=text_only)
    except UnsupportedModel as refusal:
        return Inspection(model, source.revision if source else None, refusal.reasons)
    worth = weigh(known.study, known.kind, known.dtype, method_of(known.config))
    return Inspection(model, source.revision, [], worth)
