"""Gains and costs of a fold, also as Graef 2024 counts them, and the fate of every module of the first layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefold.convert.fold.layout import Cut
from prefold.convert.fold.reads import BATCHES, ParameterReads, Reads, break_even_batch, count_reads
from prefold.convert.model.load import ResolvedModel
from prefold.convert.study import Choice, Study


@dataclass(frozen=True)
class PaperReads:
    """Values read by the first layer at one batch size (Graef 2024, section 1)."""

    batch: int
    before: int
    after: int

    @property
    def ratio(self) -> int:
        """The reduction, rounded as the paper prints it."""
        return round(self.before / self.after)


@dataclass(frozen=True)
class PaperFigures:
    """A column of the paper's second table; all in values.

    Attributes:
        embedding_memory_increase: ``(row_width - hidden_size) * vocab_size``.
        net_memory_change: that increase less the eliminated weights.
        relative_to_total: the net change as a fraction of all weights.
    """

    weights_eliminated: int
    reads: list[PaperReads]
    embedding_memory_increase: int
    net_memory_change: int
    relative_to_total: float


def paper_figures(census: ParameterReads) -> PaperFigures:
    """Count a census the paper's way."""
    matrices = [p for p in census.folded if len(p.shape) > 1 and not census.is_router(p)]
    eliminated = sum(parameter.values for parameter in matrices)
    narrow, wide = (sum(getattr(cut.table, width) for cut in census.cuts) for width in ("width", "row_width"))
    reads = [PaperReads(batch, batch * narrow + eliminated, batch * wide) for batch in BATCHES]
    increase = sum((cut.row_width - cut.table.width) * cut.rows for cut in census.cuts)
    return PaperFigures(eliminated, reads, increase, increase - eliminated, (increase - eliminated) / census.total)


@dataclass(frozen=True)
class FoldedModule:
    """A module that leaves the checkpoint: values of its slice of a row, and of the weights that go with it."""

    module: str
    width: int
    weights_eliminated: int


@dataclass(frozen=True)
class PossibleCut:
    """A cut that could be made: values of the reads of one token that it saves, and bytes that it stores."""

    name: str
    side: str
    columns: list[str]
    reads_saved: int
    table_bytes: int
    chosen: bool


@dataclass(frozen=True)
class Explained:
    """A module of the first layer with weights: its dependency, and its fate."""

    module: str
    sees: str
    becomes: str


@dataclass(frozen=True)
class FoldedSide:
    """The fold of one side; figures are values.

    Attributes:
        side: the part of the model that tokens enter; empty for the whole.
        residual: the slice that is not a folded module: embedding, or embedding and FFN.
        dropped: modules whose output is unread; width 0.
        look_ups: values of the table of each other look-up, by name.
        row_width: in the layout that was asked for.
    """

    side: str
    residual: FoldedModule
    columns: list[FoldedModule]
    dropped: list[FoldedModule]
    look_ups: dict[str, int]
    rows: int
    row_width: int
    row_bytes: int


@dataclass(frozen=True)
class Savings:
    """The figures of a foldable model; values unless a name says bytes.

    Attributes:
        dtype: of the weights and the table.
        step: the unit that the reads of batch 1 are counted for.
        unfolded: why a side does not fold where another does.
        cuts: all possible ones.
        exact: rows equal their source's values to the bit; they do not behind a sum of look-ups, or stored smaller.
        table_dtype: of stored rows, as torch spells it, where not the model's own type.
        merged_width: values of the FFN that is merged into the residual, or could be; 0 where there is none.
        checkpoint_before: bytes of the source's tensors.
        checkpoint_after: bytes of the folded checkpoint's tensors.
        table_bytes: bytes of all computed tensors.
        break_even_batch: the largest batch that gains; None where all do.
        paper: the same as the paper counts it.
        note: what the figures leave out of account; None where they leave out nothing.
    """

    dtype: torch.dtype
    step: str
    sides: list[FoldedSide]
    unfolded: list[str]
    cuts: list[PossibleCut]
    modules: list[Explained]
    exact: bool
    table_dtype: str | None
    merged_width: int
    is_merged: bool
    checkpoint_before: int
    checkpoint_after: int
    table_bytes: int
    reads: list[Reads]
    break_even_batch: int | None
    paper: PaperFigures
    note: str | None = None

    @property
    def columns(self) -> list[FoldedModule]:
        """The folded modules of all sides."""
        return [column for side in self.sides for column in side.columns]

    @property
    def weights_eliminated(self) -> int:
        """Values of all weights that the tables replace, the embeddings' aside."""
        parts = [part for side in self.sides for part in (side.residual, *side.columns, *side.dropped)]
        return sum(part.weights_eliminated for part in parts)

    @property
    def tenth_bytes(self) -> int:
        """Bytes of a tenth of all rows: nearly all look-ups of a text find theirs among so many that were used last."""
        return sum(side.rows * side.row_bytes for side in self.sides) // 10

    @property
    def layouts(self) -> dict[str, int]:
        """The row widths of the exact layout and of the one with the FFN in the residual."""
        width = sum(side.row_width for side in self.sides)
        exact = width + (self.merged_width if self.is_merged else 0)
        return {"exact": exact, "merged": exact - self.merged_width}


def estimate_savings(
    study: Study, resolved: ResolvedModel, dtype: torch.dtype, quantized: str | None = None
) -> Savings:
    """Turn a study into figures for weights of ``dtype``, though the source's be ``quantized`` by some method."""
    census, itemsize = study.census, dtype.itemsize
    return Savings(
        dtype=dtype,
        step=_step(study, resolved),
        sides=[_side(census, cut, itemsize) for cut in study.cuts],
        unfolded=study.unfolded,
        cuts=[_possible(choice, study, itemsize) for choice in study.choices],
        modules=[explained for cut in study.cuts for explained in _explained(study, cut)],
        exact=not any(cut.sum or cut.encoding for cut in study.cuts),
        table_dtype=next((cut.encoding.slices[-1].dtype for cut in study.cuts if cut.encoding), None),
        merged_width=study.mergeable_width,
        is_merged=any(cut.merges_residual for cut in study.cuts),
        checkpoint_before=census.total * itemsize,
        checkpoint_after=(census.total + census.made - census.gone) * itemsize,
        table_bytes=census.made * itemsize,
        reads=[count_reads(census, batch) for batch in BATCHES],
        break_even_batch=break_even_batch(census),
        paper=paper_figures(census),
        note=f"weights are quantized ({quantized}): figures are those of unquantized ones" if quantized else None,
    )


def _possible(choice: Choice, study: Study, itemsize: int) -> PossibleCut:
    cut = choice.cut
    return PossibleCut(
        name=cut.name,
        side=cut.side.name,
        columns=[column.module for column in cut.stored[1:]],
        reads_saved=round(choice.saved),
        table_bytes=choice.values * itemsize,
        chosen=any((cut.side, cut.name) == (chosen.side, chosen.name) for chosen in study.cuts),
    )


def _explained(study: Study, cut: Cut) -> Iterator[Explained]:
    choice = next(choice for choice in study.choices if choice.cut.side == cut.side)
    for seen in choice.seen:
        yield Explained(seen.module, seen.sees, _fate(cut, seen.module))


def _names(columns: Sequence[Any]) -> list[str]:
    return [column.module for column in columns]


def _fate(cut: Cut, module: str) -> str:
    if module in _names(cut.sum.look_ups if cut.sum else []):
        return "stays, and looks up what it adds to the columns"
    if module == cut.embedding:
        return "table"
    if module in cut.eliminated and module not in _names(cut.stored):
        return _fate_beside(cut, module)
    parent = next((name for name in cut.eliminated if f"{module}.".startswith(f"{name}.")), None)
    if parent is None:
        return "stays"
    kind = "column of a sum" if parent in _names(cut.sum.columns if cut.sum else []) else "column"
    return kind if parent == module else f"part of the {kind} {parent}"


def _fate_beside(cut: Cut, module: str) -> str:
    """Return the fate of a module that goes and has no slice of its own."""
    into = next((each.into for each in cut.merged if each.module == module), None)
    return f"added to {into}" if into else "dropped: nobody reads it any more"


def _step(study: Study, resolved: ResolvedModel) -> str:
    """Return the unit of a step: a decoder's token, an encoder's pass, or a pass through encoder and decoder."""
    if (length := study.cuts[0].length) > 1:
        return f"by a pass over {length} tokens, the fewest that it runs"
    if not resolved.model_class.can_generate():
        return "by a pass over one token"
    both = any(cut.side.sees_source for cut in study.cuts) and resolved.model_class.main_input_name == "input_ids"
    return "by a pass over one token on either side" if both else "per decoded token at batch 1"


def _side(census: ParameterReads, cut: Cut, itemsize: int) -> FoldedSide:
    stored = {column.module: column.width for column in cut.stored}
    gone = [module for module in cut.eliminated if module not in stored and module != cut.embedding]
    look_ups = cut.sum.look_ups if cut.sum else []
    return FoldedSide(
        side=cut.side.name,
        residual=_folded_module(census, cut, cut.residual.module, cut.residual.width),
        columns=[_folded_module(census, cut, column.module, column.width) for column in cut.stored[1:]],
        dropped=[_folded_module(census, cut, module, 0) for module in gone],
        look_ups={each.module: each.rows * cut.sum.width for each in look_ups if cut.sum},
        rows=cut.rows,
        row_width=cut.row_width,
        row_bytes=cut.stored_width * itemsize,
    )


def _folded_module(census: ParameterReads, cut: Cut, module: str, width: int) -> FoldedModule:
    weights = 0 if module == cut.embedding else sum(p.values for p in census.inside(module))
    return FoldedModule(module, width, weights)
