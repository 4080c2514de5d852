"""A fold in ExecuTorch: one program for prefill and steps, rows in it as the checkpoint has them."""

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
def test_smaller_rows_run_as_in_eager_and_are_in_the_program(tmp_path: Path):
    random_model(small_config("llama")).save_pretrained(tmp_path / "source")
    options = FoldOptions(table_dtype="int8", placement="host")
    folded = convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded", options=options).out
    made = export_checkpoint(folded, tmp_path / "out", to="executorch", source=str(tmp_path / "source"), context=96)
    assert made.verification.passed
    assert made.context == 96
    described = json.loads((made.out / "decoder.json").read_text())
    assert described["inputs"] == ["input_ids", "attention_mask", "position_ids"]
    assert described["outputs"][:3] == ["logits", "present.0.key", "present.0.value"]
    program = (made.out / "model.pte").read_bytes()
    assert b"XnnpackBackend" in program
    assert b"aten::embedding" in program  # outside of the delegate
    for path in (tmp_path, Path(sys.prefix), Path(torch.__file__).parent):
        assert str(path).encode() not in program

    from prefold.export.loading import load_decoder
    from prefold.export.split_rows import split_tables
    from prefold.export.to_executorch import check_rows

    tables = split_tables(load_decoder(folded, torch.float32, prefold_placement="disk"))
    tables["model.embed_tokens.rows"].get_buffer("values_int8")[7, 3] += 1
    assert check_rows(made.out, tables).problems == [
        "model.embed_tokens.rows.values_int8: not in model.pte as the checkpoint has it"
    ]
