"""Benefit and cost of folding a model, from its config alone."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from prefold.convert.checkpoint.source import Source, open_config
from prefold.convert.errors import UnsupportedModel
from prefold.convert.fold.first_layer import method_of
from prefold.convert.fold.reads import Reads
from prefold.convert.fold.tensors import untouched
from prefold.convert.options import FoldOptions
from prefold.convert.prepare import Prepared, prepare_source
from prefold.convert.savings import Savings, estimate_savings

# Below this part of the bytes read per token a run cannot tell the folded model from its source by its speed.
WORTH_IT = 0.01


@dataclass(frozen=True)
class Inspection:
    """The answer to ``prefold inspect``: ``savings``, or the ``reasons`` why the model does not fold."""

    model: str
    revision: str | None
    reasons: list[str]
    savings: Savings | None = None

    @property
    def foldable(self) -> bool:
        """Whether anything folds."""
        return self.savings is not None

    @property
    def verdict(self) -> str:
        """One line: is folding worth its bytes?"""
        if self.savings is None:
            return "does not fold: " + "; ".join(self.reasons)
        saving = self.savings.reads[0].model_saving
        growth = self.savings.checkpoint_after - self.savings.checkpoint_before
        what = f"{saving:.1%}".replace("%", " %") + f" of the bytes read {self.savings.step}"
        price = f"{growth / 1e9:+.2f} GB" if abs(growth) >= 1e7 else f"{growth / 1e6:+.2f} MB"
        is_worth_it = saving >= WORTH_IT or (saving > 0 and growth <= 0)
        return f"saves {what} for {price}" if is_worth_it else f"not worth it: {price} for {what}"

    def as_json(self) -> dict[str, Any]:
        """Return the figures under the names that other programs rely on."""
        figures: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "foldable": self.foldable,
            "reasons": self.reasons,
        }
        if self.savings is not None:
            figures |= _savings_json(self.savings)
        return figures | {"verdict": self.verdict}


def _savings_json(savings: Savings) -> dict[str, Any]:
    itemsize = savings.dtype.itemsize
    paper = savings.paper
    rows = savings.sides[0].rows
    return {
        "dtype": str(savings.dtype).removeprefix("torch."),
        "step": savings.step,
        "exact": savings.exact,
        "table_dtype": savings.table_dtype,
        "note": savings.note,
        "sides": [asdict(side) for side in savings.sides],
        "unfolded": savings.unfolded,
        "cuts": [asdict(cut) for cut in savings.cuts],
        "modules": [asdict(module) for module in savings.modules],
        "weights_eliminated": savings.weights_eliminated,
        "table_bytes": savings.table_bytes,
        "tenth_bytes": savings.tenth_bytes,
        "layouts": {
            name: {"row_width": width, "bytes": rows * width * itemsize} for name, width in savings.layouts.items()
        },
        "checkpoint_bytes": {"before": savings.checkpoint_before, "after": savings.checkpoint_after},
        "reads": [reads_json(reads, itemsize) for reads in savings.reads],
        "break_even_batch": savings.break_even_batch,
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


def inspect_checkpoint(model: str, *, revision: str | None = None, options: FoldOptions = FoldOptions()) -> Inspection:
    """Return what folding would give and cost, from the config alone.

    ``model`` is a folder, a ``config.json`` or a hub id; ``options`` are those of the conversion.

    Raises:
        UsageError: there is no such checkpoint.
        HubError: the hub did not answer.
    """
    source: Source | None = None
    try:
        source = open_config(model, revision)
        known = prepare_source(source, options)
    except UnsupportedModel as refusal:
        return Inspection(model, source.revision if source else None, refusal.reasons)
    return Inspection(model, source.revision, [], savings_of(known))


def savings_of(known: Prepared) -> Savings:
    """Return the savings of a fold; for quantized weights that lie here, with the checkpoint's real bytes."""
    savings = estimate_savings(known.study, known.resolved, known.dtype, method_of(known.config))
    if method_of(known.config) and known.source.entries:
        kept = untouched(known.source.entries, known.live, known.study.cuts, known.study.ties)
        after = sum(entry.size for entry in kept.values()) + savings.table_bytes
        note, before = f"{savings.note}, but for the checkpoint's bytes", known.source.weight_bytes
        savings = replace(savings, checkpoint_before=before, checkpoint_after=after, note=note)
    return savings
