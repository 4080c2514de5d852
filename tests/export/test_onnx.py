"""A fold in onnxruntime: names, files, proof, and faults that the proof sees."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.demo import CHECKPOINT
from prefold.export import Exported, export_checkpoint
from tests.conftest import exhaustive, random_model, small_config

onnx = pytest.importorskip("onnx", reason="the extra prefold[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra prefold[onnx] is not installed")

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    source: Path
    folded: Path
    exported: Exported

    @property
    def graph(self) -> Any:
        return onnx.load(self.exported.out / "model.onnx", load_external_data=False).graph


def _case(folder: Path, source: Path, **options: Any) -> Case:
    folded = convert_checkpoint(str(source), folder / "folded", options=FoldOptions(dtype="float32", **options)).out
    return Case(source, folded, export_checkpoint(folded, folder / "out", source=str(source)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return _case(tmp_path_factory.mktemp("demo"), CHECKPOINT)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A serial model with fewer heads of keys than of queries, a tied embedding, int8 rows, and its table on disk."""
    folder = tmp_path_factory.mktemp("small")
    random_model(small_config("llama", tie_word_embeddings=True)).save_pretrained(folder / "source")
    return _case(folder, folder / "source", table_dtype="int8", placement="disk")


@pytest.fixture(params=[exhaustive("demo"), "small"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def test_every_check_passes(case: Case):
    checks = case.exported.verification.checks
    assert {name: outcome.passed for name, outcome in checks.items()} == dict.fromkeys(
        ("runtime", "rows", "logits", "greedy"), True
    )
    assert checks["runtime"].figures["imported"] == []
    assert checks["rows"].figures["rows"] == json.loads((case.folded / "config.json").read_text())["vocab_size"]


def test_inputs_and_outputs_have_the_names_that_runtimes_load(case: Case):
    config = json.loads((case.folded / "config.json").read_text())
    parts = [f"{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)]
    assert [value.name for value in case.graph.input] == names
    assert [value.name for value in case.graph.output] == ["logits", *(f"present.{part}" for part in parts)]
    shape = [dim.dim_param or dim.dim_value for dim in case.graph.input[3].type.tensor_type.shape.dim]
    heads, width = config.get("num_key_value_heads", config["num_attention_heads"]), shape[3]
    assert shape == ["batch_size", heads, "past_sequence_length", width]


def test_the_table_and_nothing_else_is_in_a_file_of_its_own(case: Case):
    there = {
        tensor.name
        for tensor in case.graph.initializer
        if any(each.value == "table.data" for each in tensor.external_data)
    }
    assert there
    assert all(".rows." in name for name in there)
    assert {path.name for path in case.exported.out.iterdir()} >= {"model.onnx", "model.onnx.data", "table.data"}


def test_smaller_rows_are_values_scales_and_residual(small: Case):
    kinds = {
        tensor.name.split(".")[-2]: tensor.data_type for tensor in small.graph.initializer if ".rows." in tensor.name
    }
    assert kinds == {
        "values_float32": onnx.TensorProto.FLOAT,
        "values_int8": onnx.TensorProto.INT8,
        "scales": onnx.TensorProto.FLOAT,
    }


def test_no_path_of_a_machine_is_in_an_artefact(case: Case):
    paths = [
        case.source,
        case.folded,
        case.exported.out,
        ROOT,
        Path(sys.prefix),
        Path.home(),
        Path(torch.__file__).parent,
    ]
    for file in (path for path in case.exported.out.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert not [path for path in paths if len(path.parts) > 1 and str(path).encode() in content], file
        assert b'.py"' not in content, file


@pytest.mark.exhaustive
def test_a_fold_has_fewer_products(demo: Case):
    """Layer 0 of the demo has three: keys, queries and values at once, and two of the FFN."""
    products = [node for node in demo.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 22


def test_a_changed_row_is_seen(small: Case, tmp_path: Path):
    from prefold.export.loading import load_decoder
    from prefold.export.proof import check_rows
    from prefold.export.split_rows import split_tables
    from prefold.export.target import target_of

    tables, onnx_target = split_tables(load_decoder(small.folded, torch.float32)), target_of("onnx")
    for file in small.exported.out.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert check_rows(onnx_target, tmp_path, tables).passed
    content = bytearray((tmp_path / "table.data").read_bytes())
    content[40 * tables["model.embed_tokens.rows"].get_parameter("values_float32.weight").shape[1] * 4 + 1] ^= 1
    (tmp_path / "table.data").write_bytes(content)
    assert check_rows(onnx_target, tmp_path, tables).problems == [
        "model.embed_tokens.rows: row 40 is not the checkpoint's"
    ]
    (tmp_path / "table.data").unlink()
    assert check_rows(onnx_target, tmp_path, tables).problems[-1] == (
        "model.embed_tokens.rows.scales.weight: not in table.data as the checkpoint has it"
    )


def test_what_the_runtime_returns_otherwise_is_seen():
    from prefold.export.proof import check_greedy, check_logits, check_process
    from prefold.export.target import Distance, Logits, target_of

    eager = Logits([[1, 2]], [[3]], [np.eye(3, dtype=np.float32)], np.ones((2, 3), np.float32), {})
    process = {"imported": ["torch"], "mapped": False, "version": "1"}
    worse = Logits([[1, 2]], [[3]], [np.eye(3, dtype=np.float32)[::-1]], eager.padded, process)
    broken = Logits([[1, 2]], [[3]], [eager.each[0] * np.nan], eager.padded, {})
    assert check_logits(eager, eager, Distance(0, 0)).passed
    assert check_logits(worse, eager, Distance(1e-6, 1e-5)).problems == [
        "in the mean 5.16e-01 from eager, where 1.5 x 1.00e-06 are let pass",
        "at most 1.00e+00 from eager, where 4 x 1.00e-05 are let pass",
    ]
    assert not check_logits(broken, eager, Distance(1, 1)).passed
    assert check_greedy(worse, eager, Distance(1e-6, 1e-5)).problems == ["prompt 0, step 1: token 0 for 2, 1 apart"]
    assert check_greedy(worse, eager, Distance(1, 1)).figures == {"tokens": 2, "near_ties": 1}
    assert check_process(target_of("onnx"), worse).problems == [
        "the process imported torch",
        "table.data is not mapped",
    ]


def test_an_artefact_that_does_not_load_is_one_line(small: Case, tmp_path: Path):
    from prefold.export import NotExported
    from prefold.export.proof import run_artefact
    from prefold.export.target import Logits, target_of

    (tmp_path / "model.onnx").write_bytes((small.exported.out / "model.onnx").read_bytes())
    with pytest.raises(NotExported, match=r"^onnxruntime does not run it: .*External data"):
        run_artefact(target_of("onnx"), tmp_path, Logits([[1]], [[2]], [], np.zeros(1), {}))


_GENERATE = """
import json, sys
import onnxruntime_genai as genai
model = genai.Model(sys.argv[1])
ids = genai.Tokenizer(model).encode(sys.argv[2])
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(ids) + 20)
generator = genai.Generator(model, parameters)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps([int(each) for each in generator.get_sequence(0)]), "torch" in sys.modules)
"""


@pytest.mark.exhaustive
def test_onnx_runtime_genai_generates_from_the_folder(demo: Case):
    """Its own loop and tokenizer, in a process of its own: it brings another onnxruntime."""
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    text = "In the beginning there was a small town"
    made = subprocess.run([sys.executable, "-c", _GENERATE, demo.exported.out, text], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    inputs = AutoTokenizer.from_pretrained(CHECKPOINT)(text, return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0].tolist()
    assert made.stdout.strip() == f"{wanted} False"
