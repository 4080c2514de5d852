"""The same savings as Graef 2024 counts them: weight matrices alone, every expert, no router."""

from dataclasses import dataclass

from prefold.convert.fold.reads import BATCHES, ParameterReads


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
        weights_eliminated: the folded matrices.
        reads: per batch size.
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
    narrow, wide = (sum(getattr(cut, width) for cut in census.cuts) for width in ("embedding_width", "row_width"))
    reads = [PaperReads(batch, batch * narrow + eliminated, batch * wide) for batch in BATCHES]
    increase = sum((cut.row_width - cut.embedding_width) * cut.rows for cut in census.cuts)
    return PaperFigures(eliminated, reads, increase, increase - eliminated, (increase - eliminated) / census.total)
