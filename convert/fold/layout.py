"""The modules that become columns, and their places in a row."""

from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional

from prefold.common.schema import from_json
from prefold.convert.errors import BrokenCheckpoint
from prefold.convert.experiment.discover import Discovery
from prefold.convert.experiment.forms import PLAIN, Form
from prefold.convert.experiment.look_ups import LookUp, Norm
from prefold.convert.experiment.token_pure import TokenPureModule
from prefold.convert.fold.encoding import Encoding, encoding_of
from prefold.convert.model.inputs import Side
from prefold.convert.options import FoldOptions

# Zeros behind a row without columns: as long as the source's own, it would load as that where folds are unknown.
_APART = 8


@dataclass(frozen=True)
class Column:
    """The slice of a row that replaces one module.

    Attributes:
        start: where the slice begins, in values from the start of the row.
        shape: of one row of the module's output.
        masked: padded positions get zeros instead, or, behind a sum, what a sum of zero becomes.
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
class Merged:
    """A module whose output is added to that of another, and stored in its slice: in a fold it returns zeros.

    Attributes:
        shape: of one row of the module's output.
        into: the module that has the slice.
    """

    module: str
    shape: list[int]
    into: str


@dataclass(frozen=True)
class Sum:
    """Columns whose input is a sum of look-ups, as of token and position; they store the token's part, last in a row.

    Attributes:
        token: the module that the token's part of the sum is made of.
        through: the module that returns that part: the same, or a linear map, which stays.
        factor: of that part in the sum.
        look_ups: the other parts; each gets a table of its own for the same columns.
        norms: between the sum and the columns.
        live: names of the norms whose output is read by others than the columns, too.
        columns: modules that are linear in the last norm's output, in the order in which a pass reads them.
    """

    token: str
    through: str
    factor: float
    look_ups: list[LookUp]
    norms: list[Norm]
    live: list[str]
    columns: list[Column]

    @property
    def width(self) -> int:
        """Values in the columns."""
        return sum(column.width for column in self.columns)

    @property
    def steps(self) -> int:
        """Rows of a column's bias: one for each norm, or one alone, one more for padded positions if masked."""
        return max(len(self.norms), 1) + self.masked

    @property
    def masked(self) -> bool:
        """Whether padded positions get the columns of a zero sum."""
        return any(column.masked for column in self.columns)

    @property
    def gone(self) -> list[str]:
        """Names of the modules whose weights leave the checkpoint."""
        norms = [norm.module for norm in self.norms if norm.module not in self.live]
        return [*norms, *(column.module for column in self.columns)]


@dataclass(frozen=True)
class ModuleForm:
    """The form in which a module returns rows."""

    module: str
    form: Form


@dataclass(frozen=True)
class EmbeddingSite:
    """The place where the tokens of a side are looked up.

    Attributes:
        embedding: the look-up that becomes the table.
        tokens_of: the input embedding, if that is another.
        rows: vocabulary size.
        entered_before: modules that a pass enters before the embedding, and around it, the model (an empty name) first.
        unreachable: embeddings that a call with ``input_ids`` alone never uses; rows hold nothing of theirs.
    """

    side: Side
    embedding: str
    tokens_of: str | None
    rows: int
    entered_before: list[str]
    unreachable: list[str]


@dataclass(frozen=True)
class Table:
    """The tensor that holds a row of ``row_width`` values for each token.

    Attributes:
        module: the input embedding, or another look-up of the tokens, which it replaces.
        tokens_of: the embedding, if it is that other look-up: whose tokens the table looks up.
        tensor: its name in the files.
        rows: vocabulary size.
        width: values that the embedding returns for a token.
        encoding: of rows; None where they are values of the model's own type.
    """

    module: str
    tokens_of: str | None
    tensor: str
    rows: int
    row_width: int
    width: int
    encoding: Encoding | None = None


@dataclass(frozen=True)
class Cut:
    """The stored slices of a row, and the modules that they replace, on one side of a model.

    An entry of ``folds`` in a folded ``config.json`` has these fields.

    Attributes:
        name: ``deepest``, or the module that this cut stores and a deeper one drops, or stores beside the embedding.
        side: where the tokens enter.
        residual: the first slice of a row, which runs on beside the columns: the embedding, or a norm of it.
        columns: the token-pure modules that are folded, in the order in which a pass reads them.
        dropped: modules whose output is unread.
        merged: modules whose outputs are added to other slices beforehand.
        sum: the columns that see a sum of look-ups, or None.
        entered_before: modules that a pass enters before the embedding, and around it.
        unreachable: embeddings that a call with ``input_ids`` alone never uses.
        forms: in which modules return rows, of those that do not return the rows themselves.
        length: of the shortest text that the model runs, in tokens: 1 for most.
    """

    name: str
    side: Side
    table: Table
    residual: Column
    columns: list[Column]
    dropped: list[Column]
    merged: list[Merged]
    sum: Sum | None
    entered_before: list[str]
    unreachable: list[str]
    forms: list[ModuleForm]
    length: int

    @property
    def embedding(self) -> str:
        """Name of the look-up that the table replaces: the input embedding, or one beside it."""
        return self.table.module

    @property
    def rows(self) -> int:
        """Vocabulary size."""
        return self.table.rows

    @property
    def encoding(self) -> Encoding | None:
        """The encoding of rows; None where they are values of the model's own type."""
        return self.table.encoding

    @property
    def row_width(self) -> int:
        """Values in a row."""
        return self.table.row_width

    @property
    def stored_width(self) -> int:
        """Row size in units of the model's dtype: bytes / itemsize."""
        return self.encoding.width if self.encoding else self.row_width

    def encoded(self, native: torch.dtype, options: FoldOptions) -> "Cut":
        """Return the same cut of rows that are stored smaller than in the model's ``native`` type, if they are to be.

        Raises:
            UsageError: that would not be smaller.
        """
        if options.table_dtype is None:
            return self
        widths, dtype = [column.width for column in self.stored], getattr(torch, options.table_dtype)
        encoding = encoding_of(widths, native, dtype, residual=options.quantize_residual)
        return replace(self, table=replace(self.table, encoding=encoding))

    @property
    def computed(self) -> list[str]:
        """Names of the modules that the token-pure slices of a row are made of."""
        return [*(each.module for each in (self.residual, *self.columns)), *(each.module for each in self.merged)]

    def rows_of(self, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Lay out the token-pure slices of rows: ``[..., width]`` of each computed module in, of all of them out."""
        slices = []
        for column in (self.residual, *self.columns):
            added = (outputs[each.module] for each in self.merged if each.into == column.module)
            slices.append(sum(added, outputs[column.module]))
        is_plain = self.sum is None and self.encoding is None
        return functional.pad(torch.cat(slices, -1), (0, _padding(self.columns) if is_plain else 0))

    @property
    def merges_residual(self) -> bool:
        """Whether a module is part of the residual slice."""
        return any(each.into == self.residual.module for each in self.merged)

    @property
    def stored(self) -> list[Column]:
        """All slices of a row, in order."""
        return [self.residual, *self.columns, *(self.sum.columns if self.sum else [])]

    @property
    def eliminated(self) -> list[str]:
        """Names of all modules whose weights leave the checkpoint, the embedding first."""
        gone = [*self.computed, *(each.module for each in self.dropped)] + (self.sum.gone if self.sum else [])
        return [self.embedding, *(name for name in gone if name != self.embedding)]

    @property
    def added(self) -> dict[str, list[int]]:
        """The tensors that a sum needs beside the table, by name: their shapes."""
        if self.sum is None:
            return {}
        tables = {f"{each.module}.prefold.{each.weight}": [each.rows, self.sum.width] for each in self.sum.look_ups}
        return tables | {f"{column.module}.bias": [self.sum.steps, column.width] for column in self.sum.columns}

    def texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return ``[tokens]``, each repeated in the shortest text of its own: ``[tokens, length]``."""
        return tokens[:, None].expand(-1, self.length)

    def slice_of(self, module: str) -> slice:
        """Return the place of a stored module's slice in a row."""
        return next(slice(each.start, each.start + each.width) for each in self.stored if each.module == module)

    def form_of(self, module: str) -> Form:
        """Return the form in which a module returns rows."""
        return next((each.form for each in self.forms if each.module == module), PLAIN)

    def as_json(self, tensor: str) -> dict[str, Any]:
        """Return the entry of ``config.json``; ``tensor`` is the table's name in the files."""
        return asdict(replace(self, table=replace(self.table, tensor=tensor)))


def read_cuts(config: dict[str, Any]) -> list[Cut]:
    """Return the cuts that a folded checkpoint was written with, one for each side.

    Raises:
        BrokenCheckpoint: the config has no such section, or not a whole one.
    """
    section = config.get("prefold")
    if not isinstance(section, dict):
        raise BrokenCheckpoint("config.json has no prefold section: not a folded checkpoint")
    try:
        return [from_json(Cut, fold) for fold in section["folds"]]
    except (KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"config.json: its prefold section is malformed: {error}") from error


def _padding(columns: list[Column]) -> int:
    """Return how many zeros a row has behind its token-pure slices."""
    return 0 if columns else _APART


def _columns(modules: list[TokenPureModule], start: int = 0) -> list[Column]:
    """Put modules one behind the other, and return their columns."""
    starts = accumulate((module.width for module in modules), initial=start)
    return [Column(each.name, at, each.shape, each.masked) for each, at in zip(modules, starts, strict=False)]


def lay_out_row(discovery: Discovery, place: EmbeddingSite, *, length: int = 1, merge_residual: bool = False) -> Cut:
    """Store every column that was found, those that are only added up as one slice.

    With ``merge_residual`` the FFN is stored in the residual (Graef 2024, section 1).

    Where no column can be added to the residual, as in a serial block, ``merge_residual`` changes nothing.
    """
    into = dict(discovery.summed)
    if merge_residual and discovery.mergeable:
        into[discovery.mergeable] = discovery.columns[0].name
    stored = [module for module in discovery.columns if module.name not in into]
    residual, *columns = _columns(stored)
    found = {module.name: module for module in [*discovery.columns, *discovery.dropped]}
    pure_width, width = sum(module.width for module in stored), found[place.embedding].width
    behind_sum = _sum(discovery, pure_width)
    row_width = pure_width + (behind_sum.width if behind_sum else _padding(columns))
    return Cut(
        name=discovery.name,
        side=place.side,
        table=Table(place.embedding, place.tokens_of, f"{place.embedding}.weight", place.rows, row_width, width),
        residual=residual,
        columns=columns,
        dropped=[Column(module.name, 0, module.shape) for module in discovery.dropped],
        merged=[Merged(each.name, each.shape, into[each.name]) for each in discovery.columns if each.name in into],
        sum=behind_sum,
        entered_before=place.entered_before,
        unreachable=place.unreachable,
        forms=_forms(discovery),
        length=length,
    )


def _forms(discovery: Discovery) -> list[ModuleForm]:
    """Return the forms of the modules that a fold replaces, or takes rows from."""
    found = discovery.separable
    behind = [*(norm.module for norm in found.norms), *(column.name for column in found.columns)] if found else []
    names = {*(module.name for module in [*discovery.columns, *discovery.dropped]), *behind}
    return [ModuleForm(name, form) for name, form in discovery.forms.items() if name in names]


def _sum(discovery: Discovery, start: int) -> Sum | None:
    found = discovery.separable
    if found is None:
        return None
    live = [norm.name for norm in found.normed]
    columns = _columns(found.columns, start)
    return Sum(found.token, found.through, found.factor, found.look_ups, found.norms, live, columns)
