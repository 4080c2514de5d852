"""Every fault in a row that is stored in fewer bytes is seen, and so is a config that lies about such rows."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from prefold.convert.checkpoint.files import CONFIG
from prefold.convert.fold.table import table_rows
from prefold.verify.outputs import check_rows
from tests.conftest import load
from tests.verify import faults
from tests.verify.conftest import Breakable, MakeFolds, Pair
from tests.verify.smaller import (
    BF16,
    FP8,
    FP32,
    INT8,
    STORED,
    Rows,
    coarsen,
    code_by,
    edited_rows,
    pad,
    rows_of,
    scale_by,
    spoil_residual,
    swap,
    verified,
)

FAULTS: dict[str, tuple[Callable[[Rows], None], list[int]]] = {
    "scale": (scale_by(1.01, slice(41, 42)), [41]),
    "scale that is no number": (scale_by(torch.nan, slice(41, 42)), [41]),
    "code": (code_by(1), [41]),
    "code the other way": (code_by(-1), [41]),
    "padding": (pad, []),
    "swapped rows": (swap, [41, 43]),
    "residual": (spoil_residual, [41]),
    "coarse": (coarsen(64), [0, 1, 2, 3, 4]),
    "a little coarse": (coarsen(2), [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("dtype", "kind"), STORED)
def test_what_is_wrong_in_a_row_fails_rows(
    make_folds: MakeFolds, breakable: Breakable, dtype: torch.dtype, kind: torch.dtype, fault: str
):
    """In 16 bits every byte must be equal; in 32 bits a code one step off is further off than rounding explains."""
    if kind == BF16 and ("scale" in fault or "coarse" in fault or fault == "padding"):
        pytest.skip("there are no scales, and all bytes are values'")
    break_rows, expected = FAULTS[fault]
    pair = breakable(make_folds("llama", dtype, table_dtype=kind))
    with edited_rows(pair.folded) as rows:
        break_rows(rows)
    outcome = check_rows(rows_of(pair), str(dtype).removeprefix("torch."))
    assert not outcome.passed
    found = outcome.figures["first_unequal" if dtype == BF16 else "first_beyond_rounding"]
    assert found == expected
    if fault == "padding":
        assert outcome.problems == ["1 rows are not zero behind their values, the first of tokens [41]"]
    elif fault != "residual":
        assert f"furthest off in {rows.cut.stored[-1].module}" in outcome.problems[0] or fault == "swapped rows"


@pytest.mark.parametrize(("dtype", "kind"), STORED)
def test_rows_made_elsewhere_may_be_what_rounding_makes_of_them(
    make_folds: MakeFolds, breakable: Breakable, dtype: torch.dtype, kind: torch.dtype
):
    """A product that sums in another order is off by a unit in the last place, and codes and scales follow."""
    pair, name = breakable(make_folds("llama", dtype, table_dtype=kind)), str(dtype).removeprefix("torch.")
    unit = {FP32: 1e-6, BF16: 2**-7}[dtype]
    with edited_rows(pair.folded) as rows:
        live = torch.cat(list(table_rows(load(pair.source), rows.cut, 97)))
        size = torch.cat([part.abs().amax(1, keepdim=True).expand_as(part) for part in live.split(rows.widths, 1)], 1)
        sign = torch.randint(-1, 2, live.shape, generator=torch.Generator().manual_seed(0))
        rows.table.copy_(rows.encoding.encode((live.float() + sign * size.float() * unit * 0.49).to(dtype)))
    figures = rows_of(pair, same_circumstances=False)
    outcome = check_rows(figures, name)
    assert outcome.passed, outcome.problems
    assert figures["unequal"] > 90
    assert "rounding of a matrix product" in outcome.summary
    assert check_rows(figures | {"same_circumstances": True}, name).passed is (dtype == FP32)


@pytest.mark.parametrize("fault", [code_by(3), swap, pad], ids=["code", "swapped rows", "padding"])
@pytest.mark.parametrize("kind", [INT8, FP8])
def test_rows_made_elsewhere_may_not_be_wrong(
    make_folds: MakeFolds, breakable: Breakable, kind: torch.dtype, fault: Callable[[Rows], None]
):
    pair = breakable(make_folds("llama", BF16, table_dtype=kind))
    with edited_rows(pair.folded) as rows:
        fault(rows)
    assert not check_rows(rows_of(pair, same_circumstances=False), "bfloat16").passed


@pytest.mark.parametrize("factor", [1 + 2**-6, 2.0, 64.0])
@pytest.mark.parametrize("kind", [INT8, FP8])
def test_16_bit_rows_made_elsewhere_may_not_be_coarser(
    make_folds: MakeFolds, breakable: Breakable, kind: torch.dtype, factor: float
):
    pair = breakable(make_folds("llama", BF16, table_dtype=kind))
    with edited_rows(pair.folded) as rows:
        (coarsen(int(factor)) if factor >= 2 else scale_by(factor, slice(None)))(rows)
    outcome = check_rows(rows_of(pair, same_circumstances=False), "bfloat16")
    assert not outcome.passed
    assert outcome.figures["beyond_rounding"] == 97


def test_a_whole_verification_sees_wrong_rows_of_a_table_that_hashes_right(make_folds: MakeFolds, breakable: Breakable):
    pair = breakable(make_folds("llama", FP32, {"vocab_size": 257}, table_dtype=INT8))
    with edited_rows(pair.folded) as rows:
        swap(rows)
    verification = verified(pair)
    assert "rows" in verification.failed
    assert not {"structure", "reads"} & set(verification.failed)
    assert "2 wrong rows, the first of tokens [41, 43]" in verification.checks["rows"].problems[0]


def test_a_column_that_is_far_too_coarse_fails_rows_and_logits(trained: Pair, breakable: Breakable):
    pair = breakable(trained)
    with edited_rows(pair.folded) as rows:
        coarsen(64)(rows)
    verification = verified(pair)
    assert {"rows", "logits"} <= set(verification.failed) <= {"rows", "logits", "greedy"}, verification.as_markdown()
    column = rows.cut.stored[-1].module
    assert verification.checks["rows"].figures["errors"][column]["relative"] > 0.2
    assert f"{column} is furthest off" in verification.checks["rows"].summary
    assert "of at most" in verification.checks["logits"].problems[0]


def stored(config: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = config["prefold"]["folds"][0]["table"]
    return section


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda table: table["encoding"]["slices"][1].update(start=0), "encoding.slices.1.start is 0, should be 128"),
        (lambda table: table["encoding"]["slices"][2].update(scale=0), "encoding.slices.2.scale is 0, should be "),
        (lambda table: table["encoding"]["slices"][1].update(dtype="uint8"), "slices.1.dtype is 'uint8', should be"),
        (lambda table: table["encoding"]["slices"][1].update(width=31), "encoding.slices.1.width is 31, should be 32"),
        (lambda table: table["encoding"].update(row_bytes=16), "encoding.row_bytes is 16, should be "),
        (lambda table: table["encoding"].update(native="float16"), "encoding.native is 'float16', should be 'float32'"),
        (lambda table: table["encoding"].update(slices=[]), "the table is U8 [97, 208], should be F32 [97, 96]"),
        (lambda table: table.update(encoding=None), "the table is U8 [97, 208], should be F32 [97, 96]"),
        (lambda table: table.update(encoding="int8"), "table.encoding is 'int8'"),
    ],
)
def test_a_config_that_lies_about_its_slices_fails_by_name(
    make_folds: MakeFolds, breakable: Breakable, change: Callable[[dict[str, Any]], None], line: str
):
    pair = breakable(make_folds("llama", FP32, table_dtype=INT8))
    faults.edit_config(lambda config: change(stored(config)))(pair.folded)
    verification = verified(pair)
    assert "structure" in verification.failed
    assert any(line in problem for problem in verification.checks["structure"].problems)


def test_a_native_table_does_not_pass_as_a_smaller_one(make_folds: MakeFolds, breakable: Breakable):
    """Which limit holds for the logits is what the checkpoint says that it was made as."""
    pair, smaller = breakable(make_folds("llama", FP32)), make_folds("llama", FP32, table_dtype=INT8)
    said = stored(json.loads((smaller.folded / CONFIG).read_text()))["encoding"]
    faults.edit_config(lambda config: stored(config).update(encoding=said))(pair.folded)
    problems = verified(pair).checks["structure"].problems
    assert any("the table is F32 [97, 96], should be U8 [97, " in problem for problem in problems)
