"""Folds whose rows are stored in fewer bytes, and ways to break a row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefold.convert.checkpoint.files import CONFIG, TABLE
from prefold.convert.checkpoint.safetensors_file import read_header
from prefold.convert.fold.encoding import Slice
from prefold.convert.fold.layout import Cut
from prefold.verify import Verification, verify_checkpoint
from prefold.verify.probe.encoded import is_padding, numbers_of
from prefold.verify.probe.rows import RowCount, measure_rows
from prefold.verify.structure import sha256
from tests.conftest import load
from tests.verify import faults
from tests.verify.conftest import Pair

INT8, FP8, BF16, FP32 = torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float32
# The model's type, and that of its columns.
STORED = [(FP32, INT8), (FP32, FP8), (FP32, BF16), (BF16, INT8), (BF16, FP8)]


def verified(pair: Pair) -> Verification:
    return verify_checkpoint(str(pair.source), pair.folded)


def rows_of(pair: Pair, **circumstances: Any) -> dict[str, Any]:
    """Compare all rows, as a measuring process does, and say how."""
    model, (table,) = load(pair.source), load_file(pair.folded / TABLE).values()
    cut, count = faults.folded_cut(pair.folded), RowCount()
    measure_rows(model, cut, table, len(table), count)
    return count.figures() | {"same_circumstances": True} | circumstances


class Rows:
    """The table of a fold, to be broken in place."""

    def __init__(self, cut: Cut, table: torch.Tensor) -> None:
        self.cut, self.table = cut, table
        assert cut.encoding is not None
        self.encoding = cut.encoding

    @property
    def widths(self) -> list[int]:
        """Values of each slice."""
        return [part.width for part in self.encoding.slices]

    @property
    def last(self) -> Slice:
        """Where the last column lies."""
        return self.encoding.slices[-1]

    def numbers(self, part: Slice) -> torch.Tensor:
        return numbers_of(self.table, part)[0]

    def put(self, start: int, numbers: torch.Tensor) -> None:
        found = numbers.contiguous().view(torch.uint8)
        self.table[:, start : start + found.shape[1]] = found


@contextmanager
def edited_rows(folded: Path) -> Iterator[Rows]:
    """Yield the rows and write them back, with the hash of what became of them."""
    with faults.edited_table(folded) as table:
        yield Rows(faults.folded_cut(folded), table)
    with faults.edited_json(folded / CONFIG) as config:
        config["prefold"]["tensor_sha256"] = {
            name: sha256(e.chunks()) for name, e in read_header(folded / TABLE).items()
        }


def scale_by(factor: float, row: slice) -> Callable[[Rows], None]:
    def fault(rows: Rows) -> None:
        scales = numbers_of(rows.table, rows.last)[1].clone()
        scales[row] *= factor
        rows.put(rows.last.scale, scales)

    return fault


def code_by(steps: int) -> Callable[[Rows], None]:
    """Move one code of token 41: to a neighbour, or further."""

    def fault(rows: Rows) -> None:
        codes = rows.numbers(rows.last).view({1: torch.uint8, 2: torch.int16}[rows.last.torch_dtype.itemsize]).clone()
        at = rows.numbers(rows.last)[41].double().abs().sort().indices[len(codes[41]) // 2]  # neither zero nor the last
        codes[41, at] += steps
        rows.put(rows.last.start, codes)

    return fault


def pad(rows: Rows) -> None:
    rows.table[41, is_padding(rows.encoding).nonzero()[-1]] = 7


def swap(rows: Rows) -> None:
    rows.table[[41, 43]] = rows.table[[43, 41]]


def spoil_residual(rows: Rows) -> None:
    rows.table[41, rows.encoding.slices[1].start - 1] ^= 1  # an exponent's bit


def coarsen(factor: int) -> Callable[[Rows], None]:
    """Encode the last column with scales as much larger, as if that were how it is done."""

    def fault(rows: Rows) -> None:
        numbers, scales = numbers_of(rows.table, rows.last)
        codes = numbers.float() / factor
        rows.put(
            rows.last.start,
            (codes if rows.last.torch_dtype.is_floating_point else codes.round()).to(rows.last.torch_dtype),
        )
        rows.put(rows.last.scale, scales * factor)

    return fault
