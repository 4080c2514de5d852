"""Folds whose rows are stored in fewer bytes pass, and their errors are told."""

import json

import pytest
import torch

from prefold.convert.checkpoint.files import CONFIG
from prefold.convert.checkpoint.source import open_source
from prefold.convert.model.load import load_config, resolve_model
from prefold.convert.study import study_model
from prefold.verify.claims import claimed_options
from prefold.verify.outputs import check_rows
from prefold.verify.probe.metering import measure_reads
from prefold.verify.probe.rows import compare_tables
from prefold.verify.reads import check_reads
from tests.conftest import exhaustive, load
from tests.verify.conftest import MakeFolds, Pair
from tests.verify.smaller import BF16, FP8, FP32, INT8, STORED, verified

SHAPES = {
    "grouped": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "parallel": ("gpt_neox", {}),
    "norm in the residual": ("bloom", {}),
    "sum": ("gpt2", {}),
    "sum, an encoder": ("bert", {}),
    "two sides": ("t5", {}),
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), STORED)
@pytest.mark.parametrize("shape", [shape if shape in ("grouped", "sum") else exhaustive(shape) for shape in SHAPES])
def test_rows_are_the_sources_and_reads_are_the_formulas(
    make_folds: MakeFolds, shape: str, dtype: torch.dtype, kind: torch.dtype, residual: bool
):
    model_type, changes = SHAPES[shape]
    pair = make_folds(model_type, dtype, changes, table_dtype=kind, quantize_residual=residual)
    opened, folded_config = open_source(str(pair.source)), json.loads((pair.folded / CONFIG).read_text())
    config = load_config(opened)
    options = claimed_options(folded_config, None, trust_remote_code=False)
    study = study_model(resolve_model(opened, config).model_class, config, options, dtype)
    source, folded = load(pair.source), load(pair.folded)
    before, after = ({batch: m.total for batch, m in measure_reads(model).items()} for model in (source, folded))
    reads = check_reads(before, after, study.census, dtype.itemsize)
    assert reads.passed, reads.problems
    made = {f"{cut.embedding}.weight": f"{cut.embedding}.weight" for cut in study.cuts}
    made |= {name: name for cut in study.cuts for name in cut.added}
    rows = check_rows(compare_tables(source, pair.folded, made), str(dtype).removeprefix("torch."))
    assert rows.passed, rows.problems
    assert rows.figures["unequal"] == 0
    errors = rows.figures["errors"]
    assert errors.keys() == {column.module for cut in study.cuts for column in cut.stored}
    limit = {INT8: 0.02, FP8: 0.04, BF16: 0.003}[kind]
    kept = {cut.residual.module for cut in study.cuts if not residual}
    for name, error in errors.items():
        assert (error["relative"] == error["max_abs"] == 0) if name in kept else (0 < error["relative"] < limit)


WHOLE = {
    "in bf16, on disk": ("llama", BF16, {"table_dtype": INT8, "placement": "disk"}),
    "in fp32, in host memory": ("gpt_neox", FP32, {"table_dtype": FP8, "quantize_residual": True, "placement": "host"}),
    "a sum": ("gpt2", FP32, {"table_dtype": BF16}),
    "a sum in bf16, an encoder": ("bert", BF16, {"table_dtype": INT8, "quantize_residual": True}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_it_passes_and_tells_its_errors_beside_the_sources_own(make_folds: MakeFolds, name: str):
    model_type, dtype, options = WHOLE[name]
    verification = verified(make_folds(model_type, dtype, **options))
    assert verification.passed, verification.as_markdown()
    logits = verification.as_json()["checks"]["logits"]
    assert 0 < logits["overall"]["kl_mean"] <= logits["limit"] == max(1e-4, 4 * logits["noise_floor"]["kl_mean"])
    assert {"prefill", "padded", "text", "passages"} <= logits.keys()
    assert logits["positions"] > 1000
    assert "error_ratio" not in logits
    assert ("greedy" in verification.checks) is (model_type != "bert")
    assert "stored in fewer bytes, " in verification.checks["rows"].summary


def test_native_rows_on_disk_are_equal_all_the_same(make_folds: MakeFolds):
    verification = verified(make_folds("gpt_neox", BF16, placement="disk"))
    assert verification.passed, verification.as_markdown()
    assert verification.checks["logits"].figures["exact"]
    assert "overall" not in verification.checks["logits"].figures


def test_trained_weights_say_nearly_what_they_said(trained: Pair):
    verification = verified(trained)
    assert verification.passed, verification.as_markdown()
    logits = verification.checks["logits"].figures
    assert logits["noise_floor"]["kl_mean"] < logits["overall"]["kl_mean"] < 2 * logits["noise_floor"]["kl_mean"]
    assert logits["overall"]["top1_agreement"] > 0.98
    assert logits["passages"]["kl_mean"] > 1e-5
    assert logits["positions"] > 2000
