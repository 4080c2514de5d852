"""A fold in OpenVINO: a model that holds its cache, with the names and files that OpenVINO's programs load."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.demo import CHECKPOINT
from prefold.export import Exported, export_checkpoint
from tests.conftest import exhaustive, random_model, small_config

openvino = pytest.importorskip("openvino", reason="the extra prefold[openvino] is not installed")

# The types of the columns.
_TYPES = ["int8", exhaustive("bfloat16")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "source"
    random_model(small_config("llama")).save_pretrained(folder)
    return folder


def _exported(source: Path, folder: Path, **options: str) -> Exported:
    folded = convert_checkpoint(str(source), folder / "folded", options=FoldOptions(dtype="float32", **options)).out
    return export_checkpoint(folded, folder / "out", to="openvino", source=str(source))


@pytest.mark.parametrize("table_dtype", _TYPES)
def test_smaller_rows_stay_small_and_a_changed_one_is_seen(source: Path, tmp_path: Path, table_dtype: str):
    from prefold.export.loading import load_decoder
    from prefold.export.proof import check_rows
    from prefold.export.split_rows import split_tables
    from prefold.export.target import target_of

    made = _exported(source, tmp_path, table_dtype=table_dtype, placement="disk")
    assert {name: each.passed for name, each in made.verification.checks.items()} == dict.fromkeys(
        ("runtime", "rows", "logits", "greedy"), True
    )
    assert made.verification.checks["runtime"].figures["imported"] == []
    model = openvino.Core().read_model(made.out / "openvino_model.xml")
    names = ["input_ids", "attention_mask", "position_ids", "beam_idx"]
    assert [value.any_name for value in model.inputs] == names
    assert [value.any_name for value in model.outputs] == ["logits"]
    for file in made.out.glob("openvino_model.*"):
        for path in (tmp_path, Path(sys.prefix), Path(torch.__file__).parent):
            assert str(path).encode() not in file.read_bytes()

    target, tables = target_of("openvino"), split_tables(load_decoder(tmp_path / "folded", torch.float32))
    rows = tables["model.embed_tokens.rows"].get_parameter(f"values_{table_dtype}.weight")
    weights, stored = made.out / "openvino_model.bin", rows.contiguous().view(torch.uint8).numpy()
    content = bytearray(weights.read_bytes())
    content[content.find(stored.tobytes()) + 7 * stored.shape[1]] ^= 1
    weights.write_bytes(content)
    assert check_rows(target, made.out, tables).problems == ["model.embed_tokens.rows: row 7 is not the checkpoint's"]


_GENERATE = """
import sys
import openvino
import openvino_genai
from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer
made = convert_tokenizer(AutoTokenizer.from_pretrained(sys.argv[1]), with_detokenizer=True)
for name, each in zip(("tokenizer", "detokenizer"), made):
    openvino.save_model(each, f"{sys.argv[1]}/openvino_{name}.xml")
print(openvino_genai.LLMPipeline(sys.argv[1], "CPU").generate(sys.argv[2], max_new_tokens=20))
"""


@pytest.mark.exhaustive
def test_openvino_genai_generates_from_the_folder(tmp_path: Path):
    """Its own loop and tokenizer, in a process of its own."""
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    text, out = "In the beginning there was", _exported(CHECKPOINT, tmp_path).out
    made = subprocess.run([sys.executable, "-c", _GENERATE, out, text], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(CHECKPOINT), AutoTokenizer.from_pretrained(CHECKPOINT)
    inputs = tokenizer(text, return_tensors="pt")
    wanted = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert made.stdout.rstrip("\n") == tokenizer.decode(wanted)
