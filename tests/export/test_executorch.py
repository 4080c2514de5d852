"""A fold in ExecuTorch: one program for prefill and steps, and rows in a file of their own."""

import json
import sys
from pathlib import Path

import pytest
import torch

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.export import export_checkpoint
from tests.conftest import random_model, small_config

pytest.importorskip("executorch", reason="the extra prefold[executorch] is not installed")


@pytest.mark.exhaustive
def test_smaller_rows_run_as_in_eager_and_are_mapped_from_a_file(tmp_path: Path):
    random_model(small_config("llama")).save_pretrained(tmp_path / "source")
    options = FoldOptions(table_dtype="int8", placement="host")
    folded = convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded", options=options).out
    made = export_checkpoint(folded, tmp_path / "out", to="executorch", source=str(tmp_path / "source"), context=96)
    assert made.verification.passed
    assert made.verification.checks["runtime"].figures["mapped"] is True
    assert made.context == 96
    described = json.loads((made.out / "decoder.json").read_text())
    assert described["inputs"] == ["input_ids", "attention_mask", "position_ids"]
    assert described["outputs"][:3] == ["logits", "present.0.key", "present.0.value"]
    program, table = (made.out / "model.pte").read_bytes(), made.out / "table.ptd"
    assert b"XnnpackBackend" in program
    assert b"aten::embedding" in program  # outside of the delegate
    for path in (tmp_path, Path(sys.prefix), Path(torch.__file__).parent):
        assert str(path).encode() not in program + table.read_bytes()

    from prefold.export.loading import load_decoder
    from prefold.export.proof import check_rows
    from prefold.export.split_rows import split_tables
    from prefold.export.target import target_of

    target, tables = target_of("executorch"), split_tables(load_decoder(folded, torch.float32))
    rows = tables["model.embed_tokens.rows"].get_parameter("values_int8.weight")
    assert program.find(rows.numpy().tobytes()) < 0
    content = bytearray(table.read_bytes())
    content[content.find(rows.numpy().tobytes()) + 7 * rows.shape[1]] ^= 1
    table.write_bytes(content)
    assert check_rows(target, made.out, tables).problems == ["model.embed_tokens.rows: row 7 is not the checkpoint's"]
    table.unlink()
    assert len(check_rows(target, made.out, tables).problems) == 3
