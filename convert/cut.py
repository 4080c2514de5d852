"""Which modules become columns, and where each lies in a row."""

from dataclasses import dataclass
from typing import Any

import torch

from prefold.convert.discover import Discovery, Pure


@dataclass(frozen=True)
class Column:
    """The slice of a row that replaces one module.

    Attributes:
        module: the module's name in the model.
        start: where the slice begins, in values from the start of the row.
        shape: of one row of the module's output.
        masked: padded positions get zeros instead.
    """

    module: str
    start: int
    shape: list[int]
    masked: bool = False

    @property
    def width(self) -> int:
        """Values in the slice."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Cut:
    """What is stored for a token, and what becomes of the modules.

    Attributes:
        embedding: name of the input embedding.
        embedding_width: values that the embedding returns for a token.
        rows: vocabulary size.
        residual: what runs on beside the columns: the embedding, or a norm of it.
        columns: the folded modules of the first block, in the order in which a pass reads them.
        dropped: modules whose output nobody reads any more.
        merged: the module that is added to the residual slice beforehand, or None.
    """

    embedding: str
    embedding_width: int
    rows: int
    residual: Column
    columns: list[Column]
    dropped: list[Column]
    merged: Column | None

    @property
    def row_width(self) -> int:
        """Values in a row."""
        return self.residual.width + sum(column.width for column in self.columns)

    @property
    def computed(self) -> list[Column]:
        """Everything that a row is made of: the residual, the columns, and what is merged into the residual."""
        return [self.residual, *self.columns, *([self.merged] if self.merged else [])]

    @property
    def eliminated(self) -> list[str]:
        """Names of all modules whose weights leave the checkpoint, the embedding first."""
        gone = [*self.computed, *self.dropped]
        return [self.embedding, *(column.module for column in gone if column.module != self.embedding)]

    def section(self) -> dict[str, Any]:
        """Describe the cut as the runtime module reads it from ``config.json``."""
        bare = self.residual.module == self.embedding
        read = self.columns if bare else [self.residual, *self.columns]
        return {
            "table": {
                "module": self.embedding,
                "rows": self.rows,
                "row_width": self.row_width,
                "start": self.residual.start if bare else None,
                "width": self.embedding_width,
            },
            "columns": [{"module": c.module, "start": c.start, "shape": c.shape, "masked": c.masked} for c in read],
            "dropped": [{"module": c.module, "shape": c.shape} for c in self.dropped if c.module != self.embedding],
            "merged": [{"module": c.module, "shape": c.shape} for c in ([self.merged] if self.merged else [])],
        }


def _placed(pure: list[Pure]) -> list[Column]:
    columns, start = list[Column](), 0
    for module in pure:
        columns.append(Column(module.name, start, module.shape, module.masked))
        start += module.width
    return columns


def choose_cut(discovery: Discovery, embedding: str, rows: int, *, merge_residual: bool = False) -> Cut:
    """Store every column that was found; with ``merge_residual`` the FFN in the residual (Graef 2024, section 1).

    Where no column can be added to the residual, as in a serial block, ``merge_residual`` changes nothing.
    """
    merged = None
    stored = discovery.columns
    if merge_residual and discovery.mergeable:
        merged = next(Column(m.name, 0, m.shape) for m in stored if m.name == discovery.mergeable)
        stored = [module for module in stored if module.name != discovery.mergeable]
    residual, *columns = _placed(stored)
    found = {module.name: module for module in [*discovery.columns, *discovery.dropped]}
    dropped = [Column(module.name, 0, module.shape) for module in discovery.dropped]
    return Cut(embedding, found[embedding].width, rows, residual, columns, dropped, merged)
