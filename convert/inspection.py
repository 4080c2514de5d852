"""What folding a model would give and cost, told without reading a weight."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from prefold.convert.errors import UnsupportedModel
from prefold.convert.model import load_class, load_config, resolve_dtype
from prefold.convert.paper import PaperFigures, paper_figures
from prefold.convert.reads import BATCHES, Census, Reads, break_even_batch, count_reads
from prefold.convert.source import Source, open_config
from prefold.convert.study import Study, study_model

# Below this part of the bytes read per token a run cannot tell the folded model from its source by its speed.
WORTH_IT = 0.01


@dataclass(frozen=True)
class FoldedModule:
    """A module that leaves the checkpoint: values of its slice of a row, and of the weights that go with it."""

    module: str
    width: int
    weights_eliminated: int


@dataclass(frozen=True)
class Worth:
    """The figures of a foldable model; values unless a name says bytes.

    Attributes:
        dtype: of the weights and the table.
        residual: the slice that is not a folded module: embedding, or embedding and FFN.
        columns: the folded modules.
        dropped: modules that nobody reads any more; width 0.
        rows: of the table.
        row_width: in the layout that was asked for.
        exact_row_width: with the FFN as a column of its own.
        merged_row_width: with the FFN merged into the residual; the same where there is none.
        checkpoint_before: bytes of the source's tensors.
        checkpoint_after: bytes of the folded checkpoint's tensors.
        reads: per batch size.
        break_even_batch: the largest batch that gains; None where all do.
        paper: the same as the paper counts it.
    """

    dtype: torch.dtype
    residual: FoldedModule
    columns: list[FoldedModule]
    dropped: list[FoldedModule]
    rows: int
    row_width: int
    exact_row_width: int
    merged_row_width: int
    checkpoint_before: int
    checkpoint_after: int
    reads: list[Reads]
    break_even_batch: int | None
    paper: PaperFigures

    @property
    def table_bytes(self) -> int:
        """Bytes of the table."""
        return self.rows * self.row_width * self.dtype.itemsize

    @property
    def weights_eliminated(self) -> int:
        """Values of all weights that the table replaces, the embedding's aside."""
        return sum(part.weights_eliminated for part in [self.residual, *self.columns, *self.dropped])


@dataclass(frozen=True)
class Inspection:
    """The answer to ``prefold inspect``.

    Attributes:
        model: what was inspected.
        revision: its commit on the hub.
        reasons: why it does not fold; empty where it does.
        assumed_parallel: the figures are those of a hypothetical parallel block.
        worth: the figures, where it folds.
    """

    model: str
    revision: str | None
    reasons: list[str]
    assumed_parallel: bool = False
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
        what = f"{saving:.1%}".replace("%", " %") + " of the bytes read per decoded token at batch 1"
        price = f"{growth / 1e9:+.2f} GB" if abs(growth) >= 1e7 else f"{growth / 1e6:+.2f} MB"
        return f"saves {what} for {price}" if saving >= WORTH_IT else f"not worth it: {price} for {what}"

    def as_json(self) -> dict[str, Any]:
        """Return the figures under the names that other programs rely on."""
        told: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "foldable": self.foldable,
            "reasons": self.reasons,
            "assumed_parallel": self.assumed_parallel,
        }
        if self.worth is not None:
            told |= _worth_json(self.worth)
        return told | {"verdict": self.verdict}


def _worth_json(worth: Worth) -> dict[str, Any]:
    itemsize = worth.dtype.itemsize
    paper = worth.paper
    return {
        "dtype": str(worth.dtype).removeprefix("torch."),
        "residual": asdict(worth.residual),
        "columns": [asdict(column) for column in worth.columns],
        "dropped": [asdict(module) for module in worth.dropped],
        "weights_eliminated": worth.weights_eliminated,
        "table": {"rows": worth.rows, "row_width": worth.row_width, "bytes": worth.table_bytes},
        "layouts": {
            name: {"row_width": width, "bytes": worth.rows * width * itemsize}
            for name, width in (("exact", worth.exact_row_width), ("merged", worth.merged_row_width))
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
    assume_parallel: bool = False,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Inspection:
    """Say what folding would give and cost, from the config alone.

    ``model`` is a folder, a ``config.json`` or a hub id. ``assume_parallel`` asks what a parallel block of
    the same shape would give (the paper's hypothetical Mixtral).

    Raises:
        UsageError: there is no such checkpoint.
        HubError: the hub did not answer.
    """
    source: Source | None = None
    try:
        source = open_config(model, revision)
        config = load_config(source, trust_remote_code=trust_remote_code)
        study = study_model(
            load_class(source, config), config, merge_residual=merge_residual, assume_parallel=assume_parallel
        )
    except UnsupportedModel as refusal:
        return Inspection(model, source.revision if source else None, refusal.reasons)
    worth = weigh(study, resolve_dtype(source, config, dtype))
    return Inspection(model, source.revision, [], assume_parallel, worth)


def weigh(study: Study, dtype: torch.dtype) -> Worth:
    """Turn a study into figures for weights of ``dtype``."""
    cut, census = study.cut, study.census
    before = census.total * dtype.itemsize
    embedding = 0 if study.head else sum(parameter.values for parameter in census.embedding)
    gone = embedding + sum(parameter.values for parameter in census.folded)
    return Worth(
        dtype=dtype,
        residual=_told(census, cut.residual.module, cut.residual.width),
        columns=[_told(census, column.module, column.width) for column in cut.columns],
        dropped=[
            _told(census, gone.module, 0)
            for gone in [*cut.dropped, *([cut.merged] if cut.merged else [])]
            if gone.module != cut.embedding
        ],
        rows=cut.rows,
        row_width=cut.row_width,
        exact_row_width=cut.row_width + (cut.merged.width if cut.merged else 0),
        merged_row_width=cut.row_width - (0 if cut.merged else study.mergeable_width),
        checkpoint_before=before,
        checkpoint_after=before + (cut.rows * cut.row_width - gone) * dtype.itemsize,
        reads=[count_reads(census, batch) for batch in BATCHES],
        break_even_batch=break_even_batch(census),
        paper=paper_figures(census),
    )


def _told(census: Census, module: str, width: int) -> FoldedModule:
    weights = 0 if module == census.cut.embedding else sum(p.values for p in census.inside(module))
    return FoldedModule(module, width, weights)
