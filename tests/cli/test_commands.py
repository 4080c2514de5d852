"""The commands as a shell sees them: stdout, stderr, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefold.cli.main import main
from tests.conftest import Checkpoint


@pytest.mark.parametrize("command", [[], ["inspect"], ["convert"], ["verify"], ["export"], ["demo"]])
def test_help_does_not_wait_for_torch(command: list[str]):
    look = (
        "import sys; sys.argv = ['prefold', *sys.argv[1:], '--help']\n"
        "from prefold.cli.main import main\n"
        "try: main()\n"
        "finally: sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "prefold" in done.stdout
    if command:
        assert "Example" in done.stdout


def test_version(prefold):
    ran = prefold("--version")
    assert (ran.code, ran.out.startswith("prefold 0.")) == (0, True)


def test_a_terminal_of_ascii_alone(checkpoint: Checkpoint, tmp_path: Path):
    """A verification of smaller rows prints a Greek letter."""
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "prefold.cli.main", "convert", str(checkpoint("llama")), str(tmp_path / "out")]
    done = subprocess.run([*command, "--table-dtype", "int8"], env=os.environ | ascii_alone, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"max |\\u0394|" in done.stdout
    assert (tmp_path / "out").is_dir()


def test_inspect_prints_a_table_and_json_says_the_same(prefold, checkpoint: Checkpoint):
    source = checkpoint("gpt_neox")
    shown, told = prefold("inspect", source), prefold("inspect", source, "--json")
    assert (shown.code, told.code) == (0, 0)
    figures = json.loads(told.out)
    assert figures["verdict"] in shown.out
    (side,) = figures["sides"]
    assert f"{side['row_width']:,} values" in shown.out
    for column in side["columns"]:
        assert column["module"] in shown.out


def test_inspect_of_what_does_not_fold_still_prints_json(prefold, tmp_path: Path):
    from transformers import CpmAntConfig

    CpmAntConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dim_head=8).save_pretrained(
        tmp_path
    )
    ran, shown = prefold("inspect", tmp_path, "--json"), prefold("inspect", tmp_path)
    assert (ran.code, shown.code) == (3, 3)
    told = json.loads(ran.out)
    assert told["foldable"] is False
    assert [line.strip() for line in shown.out.splitlines()] == [f"{tmp_path} does not fold:", *told["reasons"]]


@pytest.mark.parametrize(("model_type", "line"), [("t5", ""), ("gpt2", "a sum of look-ups: as accurate as")])
def test_inspect_names_sides_and_a_sum_of_look_ups(prefold, checkpoint: Checkpoint, model_type: str, line: str):
    source = checkpoint(model_type)
    shown, told = prefold("inspect", source).out, json.loads(prefold("inspect", source, "--json").out)
    lines = [each.strip() for each in shown.splitlines()]
    assert all(side["side"] in lines for side in told["sides"] if side["side"])
    assert len({side["side"] for side in told["sides"]}) == (2 if model_type == "t5" else 1)
    assert line in shown


def test_convert_verifies_and_prints_one_json_object(prefold, checkpoint: Checkpoint, tmp_path: Path):
    ran = prefold("convert", checkpoint("llama"), tmp_path / "out", "--json")
    assert ran.code == 0
    figures = json.loads(ran.out)
    assert figures["verification"]["passed"] is True
    assert figures["inspection"]["foldable"] is True
    assert Path(figures["out"]) == tmp_path / "out"
    assert "not worth" in ran.err or "saves" in ran.err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| rows | passed |" in card


def test_convert_tells_where_rows_are_to_lie_and_how_small_they_are(prefold, checkpoint: Checkpoint, tmp_path: Path):
    source, out = checkpoint("gpt_neox", torch.bfloat16), tmp_path / "out"
    options = ["--placement", "disk", "--table-dtype", "int8", "--quantize-residual"]
    told = json.loads(prefold("convert", source, out, *options, "--json").out)
    inspected = json.loads(prefold("inspect", source, *options[2:], "--json").out)
    assert told["inspection"]["table_dtype"] == inspected["table_dtype"] == "int8"
    assert told["inspection"]["exact"] is False
    (side,) = inspected["sides"]
    assert inspected["table_bytes"] == side["rows"] * side["row_bytes"] < 0.6 * side["rows"] * side["row_width"] * 2
    assert json.loads((out / "config.json").read_text())["prefold"]["placement"] == "disk"
    assert "--placement disk --table-dtype int8 --quantize-residual" in (out / "README.md").read_text()
    assert set(told["verification"]["checks"]["rows"]["errors"]) == {
        c["module"] for c in [side["residual"], *side["columns"]]
    }
    assert "as int8" in prefold("inspect", source, *options[2:]).out


def test_convert_shows_a_report(prefold, checkpoint: Checkpoint, tmp_path: Path):
    ran = prefold("convert", checkpoint("llama"), tmp_path / "out", "--no-verify")
    assert ran.code == 0
    assert f"folded into {tmp_path / 'out'}" in ran.out
    assert (tmp_path / "out" / "config.json").exists()


def test_verify_reports_as_a_page_and_fails_with_its_own_code(prefold, checkpoint: Checkpoint, fold, tmp_path: Path):
    source = checkpoint("llama")
    folded = fold(source)
    prompts = tmp_path / "prompts.txt"
    passed = prefold("verify", source, folded, "--report", tmp_path / "report.html")
    assert (passed.code, "verified" in passed.out) == (0, True)
    assert "passed" in (tmp_path / "report.html").read_text()
    (folded / "generation_config.json").unlink()
    failed = prefold("verify", source, folded, "--json")
    assert failed.code == 5
    assert json.loads(failed.out)["checks"]["structure"]["passed"] is False
    assert prefold("verify", source, folded, "--prompts", prompts).code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["convert", "./nothing", "out"], 2, "no such"),
        (["inspect", "./nothing"], 2, "no such"),
        (["verify", "./nothing", "out"], 2, "no such"),
        (["convert", "{source}", "out", "--dtype", "int3"], 2, "int3"),
        (["convert", "{source}", "out", "--max-shard-size", "big"], 2, "no size"),
        (["convert", "{source}", "out", "--chunk-tokens", "0"], 2, "chunk-tokens"),
        (["convert", "{source}", "{source}/out", "--device", "abacus"], 2, "--device abacus: this machine has none"),
        (["convert", "{source}", "out", "--placement", "cloud"], 2, "none of device, host, disk"),
        (["convert", "{source}", "out", "--table-dtype", "int4"], 2, "int4"),
        (["inspect", "{source}", "--quantize-residual"], 2, "give --table-dtype, too"),
        (["convert", "{bf16}", "out", "--table-dtype", "bfloat16"], 2, "no smaller than the model's bfloat16"),
        (["convert", "{source}", "{source}"], 4, "exists already"),
        (["convert", "{source}", "{source}/config.json/out"], 1, "cannot be written"),
        (["fold", "{source}"], 2, "No such command"),
        (["verify", "{source}", "out", "--report", "report.pdf"], 2, "no page"),
    ],
)
def test_errors_are_one_line_and_a_code(prefold, checkpoint: Checkpoint, arguments: list[str], code: int, line: str):
    named = {"source": checkpoint("llama"), "bf16": checkpoint("llama", torch.bfloat16, name="bf16")}
    ran = prefold(*(argument.format(**named) for argument in arguments))
    assert ran.code == code
    assert line in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_debugging_shows_the_traceback(prefold, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PREFOLD_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["prefold", "inspect", str(tmp_path / "nothing")])
    from prefold.convert import UsageError

    with pytest.raises(UsageError):
        main()


def test_an_unsupported_model_has_a_line_for_each_reason(prefold, checkpoint: Checkpoint, tmp_path: Path):
    source = checkpoint("llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}, "prefold": {}})
    )
    ran = prefold("convert", source, tmp_path / "out")
    assert ran.code == 3
    assert len(ran.err.strip().splitlines()) == 2


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("200 MiB", 200 << 20), ("17", 17), ("1.5kb", 1500)])
def test_sizes_are_read(text: str, size: int):
    from prefold.cli.options import parse_size

    assert parse_size(text) == size
