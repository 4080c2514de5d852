"""Compare every row of a folded checkpoint's tables with the live first layer of its source."""

from dataclasses import dataclass, field
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from prefold.convert import circumstances
from prefold.convert.checkpoint import open_folder
from prefold.convert.fold import Cut, Encoding, Linear, Slice, added_tensors, compute_rows, read_cuts
from prefold.verify.probe.encoded import is_padding, numbers_of, scales_of, steps, values_of

_ROWS_AT_ONCE = 512
# Relative, and absolute as part of a column's largest value: torch.testing's for wide types; for 16 bits one unit in
# the last place, which a product takes that sums in another order (seen in 3e-4 of the values of one-row products).
_ROUNDING = {torch.float64: (1e-7, 1e-7), torch.float32: (1.3e-6, 1e-5), torch.float16: (0, 2**-10)}
_ROUNDING_16 = (0, 2**-7)
# Scales are numbers in float32, and so is what is divided and multiplied by them.
_ENCODED = torch.finfo(torch.float32).eps


def _bounds(dtype: torch.dtype) -> tuple[float, float]:
    return _ROUNDING.get(dtype, _ROUNDING_16)


def _rounding(live: torch.Tensor) -> torch.Tensor:
    """Return the rounding of another order of summation for the values of a column, in float64."""
    rtol, atol = _bounds(live.dtype)
    size = live.double().abs()
    return atol * size.amax(1, keepdim=True) + rtol * size


def _is_close(stored: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Return, for every row of a column, whether it is within the rounding of its dtype."""
    return (stored.double() - live.double()).abs().le(_rounding(live)).all(1)


def _is_encoded(stored: torch.Tensor, expected: torch.Tensor, live: torch.Tensor, part: Slice) -> torch.Tensor:
    """Return, for every row, whether a slice's bytes are the nearest to ``live`` or to one that rounds otherwise."""
    numbers, scales = (each.double() for each in numbers_of(stored, part))
    right = numbers_of(expected, part)[1].double()  # coarser rows must not set their own step
    room = _rounding(live)
    if part.torch_dtype != live.dtype:
        room = room + steps(live, part.torch_dtype, right) / 2 + _ENCODED * live.double().abs()
    near = (numbers * scales - live.double()).abs().le(room)
    return (near & (scales - right).abs().le((sum(_bounds(live.dtype)) + _ENCODED) * right)).all(1)


@dataclass
class Loss:
    """Differences of a column's values, as they are read, from those that they were made of; sums of squares."""

    max_abs: float = 0.0
    squared: float = 0.0
    size: float = 0.0

    def add(self, read: torch.Tensor, live: torch.Tensor) -> None:
        """Add ``[rows, width]``."""
        apart = (read.double() - live.double()).nan_to_num(inf)
        self.max_abs = max(self.max_abs, float(apart.abs().max()))
        self.squared += float(apart.square().sum())
        self.size += float(live.double().square().sum())

    @property
    def relative(self) -> float:
        """The root of the squared differences over the squared values."""
        return (sqrt(self.squared / self.size) if self.size else inf) if self.squared else 0.0


@dataclass
class RowCount:
    """Numbers of rows by the outcome of their comparison.

    Attributes:
        unequal: rows that differ; encoded ones, in a byte of a value or of a scale.
        beyond: rows that differ by more than the rounding of a matrix product, or by more than it may do to a code.
        infinite: rows that are not finite.
        padded: rows that are not zero where no value lies.
        worst: the largest difference of a value or of a scale, by column or tensor.
        losses: what encoding costs, by column; none where rows are not encoded.
    """

    rows: int = 0
    unequal: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    infinite: list[int] = field(default_factory=list)
    padded: list[int] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)

    def compare(self, start: int, stored: torch.Tensor, live: torch.Tensor, columns: dict[str, slice]) -> None:
        """Compare ``[rows, width]``, the first of which is number ``start``, column by column.

        Rows that are equal and finite, as nearly all are, need no closer look.
        """
        if torch.equal(stored, live) and all(bound.isfinite() for bound in live.aminmax()):
            self.rows += len(stored)
            self.worst = dict.fromkeys(columns, 0.0) | self.worst
            return
        close = torch.stack([_is_close(stored[:, part], live[:, part]) for part in columns.values()]).all(0)
        self._count(start, stored.isfinite() & live.isfinite(), stored.ne(live), close)
        self._measure(stored, live, columns)

    def compare_encoded(
        self, start: int, stored: torch.Tensor, live: torch.Tensor, columns: dict[str, slice], encoding: Encoding
    ) -> None:
        """Compare ``[rows, row_bytes]`` with the encoded ``live``, ``[rows, row_width]``."""
        expected, read, padding = encoding.encode(live), values_of(stored, encoding), is_padding(encoding)
        parts = zip(columns.values(), encoding.slices, strict=True)
        close = torch.stack([_is_encoded(stored, expected, live[:, at], part) for at, part in parts]).all(0)
        self._count(start, read.isfinite() & live.isfinite(), stored.ne(expected) & ~padding, close)
        self._measure(read, values_of(expected, encoding), columns)
        self._measure(scales_of(stored, encoding), scales_of(expected, encoding), _each(columns))
        self.padded += _numbers(start, stored[:, padding].ne(0).any(1))
        for name, at in columns.items():
            self.losses.setdefault(name, Loss()).add(read[:, at], live[:, at])

    def _count(self, start: int, finite: torch.Tensor, unequal: torch.Tensor, close: torch.Tensor) -> None:
        self.rows += len(close)
        self.infinite += _numbers(start, ~finite.all(1))
        self.unequal += _numbers(start, unequal.any(1))
        self.beyond += _numbers(start, ~close)

    def _measure(self, stored: torch.Tensor, live: torch.Tensor, columns: dict[str, slice]) -> None:
        for name, part in columns.items():
            apart = (stored[:, part].double() - live[:, part].double()).abs().nan_to_num(inf)
            self.worst[name] = max(self.worst.get(name, 0.0), float(apart.max()))

    def figures(self) -> dict[str, Any]:
        """Return the counts, and the first rows of each kind."""
        counts = {"unequal": self.unequal, "beyond_rounding": self.beyond, "not_finite": self.infinite}
        counts |= {"padding_not_zero": self.padded} if self.losses else {}
        first = {f"first_{name}": numbers[:5] for name, numbers in counts.items()}
        lengths = {name: len(numbers) for name, numbers in counts.items()}
        errors = {name: {"max_abs": loss.max_abs, "relative": loss.relative} for name, loss in self.losses.items()}
        return {"rows": self.rows, **lengths, **first, "max_abs_difference": self.worst} | (
            {"errors": errors} if errors else {}
        )


def _each(columns: dict[str, slice]) -> dict[str, slice]:
    """Return the places of each column's one number among those of all columns."""
    return {name: slice(number, number + 1) for number, name in enumerate(columns)}


def _numbers(start: int, rows: torch.Tensor) -> list[int]:
    """Return the numbers of the true rows of a chunk, the first of which is number ``start``."""
    numbers: list[int] = (start + rows.nonzero().flatten()).tolist()
    return numbers


def measure_rows(model: PreTrainedModel, cut: Cut, table: Any, chunk_tokens: int, count: RowCount) -> None:
    """Compare every row of a table with the live first layer of the source model.

    As many rows are run at once as when the table was made: how a product rounds may depend on that.
    """
    linear = Linear(model, cut, cut.sum) if cut.sum else None
    columns = {column.module: slice(column.start, column.start + column.width) for column in cut.stored}
    for start in range(0, cut.rows, chunk_tokens):
        stored = table[start : start + chunk_tokens]
        live = compute_rows(model, cut, cut.texts(torch.arange(start, start + len(stored))))[:, 0]
        live = linear.completed(live) if linear else live
        if cut.encoding:
            count.compare_encoded(start, stored, live, columns, cut.encoding)
        else:
            count.compare(start, stored, live, columns)


def compare_tables(model: PreTrainedModel, folder: Path, made: dict[str, str]) -> dict[str, Any]:
    """Compare the computed tensors of a folded checkpoint with ``model``, its source."""
    folded = open_folder(folder)
    cuts = read_cuts(folded.config)
    computed = folded.config["prefold"].get("computed", {})
    chunks = computed.get("chunk_tokens", [_ROWS_AT_ONCE] * len(cuts))
    count = RowCount()
    for cut, chunk_tokens in zip(cuts, chunks, strict=True):
        name = made[f"{cut.embedding}.weight"]
        with safe_open(folded.entries[name].file, framework="pt") as file:
            measure_rows(model, cut, file.get_slice(name), chunk_tokens, count)
            for parameter, live in added_tensors(model, cut, model.dtype):
                stored = file.get_tensor(made[parameter])
                count.compare(0, stored, live, {parameter: slice(None)})
    return count.figures() | {"same_circumstances": computed == circumstances("cpu", chunks)}
