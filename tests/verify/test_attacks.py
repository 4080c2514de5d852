"""Checkpoints of an attacker, converted and verified with default options: nothing of theirs runs, nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefold.convert import FoldOptions, UnsupportedModel, convert_checkpoint
from prefold.convert.checkpoint.files import RUNTIMES
from prefold.verify import require_verified, verify_checkpoint
from tests.convert.test_remote_code import own_code
from tests.verify.conftest import Pair

__all__ = ["own_code"]

Breakable = Callable[[Pair], Pair]


def plant(folder: Path, name: str, marker: Path) -> None:
    """Put code into a folder that leaves ``marker`` behind where it runs."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\ndef generate(*_, **__): pass\n")


def test_a_sources_custom_generate_does_not_run_and_does_not_go_along(checkpoint, tmp_path: Path):
    source, ran = checkpoint("llama"), tmp_path / "ran"
    plant(source, "custom_generate/generate.py", ran)
    conversion = convert_checkpoint(str(source), tmp_path / "out", check=require_verified())
    assert conversion.verification is not None
    assert not ran.exists()
    assert conversion.left_out == ["custom_generate/"]
    assert not (tmp_path / "out" / "custom_generate").exists()


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "modeling_prefold.py", "columns_prefold.py"])
def test_a_hostile_fold_is_rejected_before_any_of_it_runs(name: str, llama: Pair, breakable: Breakable, tmp_path: Path):
    pair, ran = breakable(llama), tmp_path / "ran"
    plant(pair.folded, name, ran)
    verification = verify_checkpoint(str(pair.source), pair.folded, trust_remote_code=True)
    assert not ran.exists()
    (problem,) = verification.checks["structure"].problems
    assert problem.startswith(f"{name}: ")
    assert verification.checks["logits"].summary == "not run: structure does not hold"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float8_e4m3fn"),
        ("prefold.versions", {"torch": [[[[1]]]]}),
        ("prefold.source", {"name": "x"}),
        ("prefold.revision", 5),
    ],
)
def test_a_fold_that_says_what_no_conversion_writes_is_not_run(
    key: str, value: Any, llama: Pair, breakable: Breakable, tmp_path: Path
):
    pair = breakable(llama)
    config = json.loads((pair.folded / "config.json").read_text())
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    (pair.folded / "config.json").write_text(json.dumps(config))
    verification = verify_checkpoint(str(pair.source), pair.folded)
    assert verification.failed[0] == "structure"
    assert verification.checks["rows"].summary == "not run: structure does not hold"


def test_a_config_in_the_configs_place_runs_nothing(checkpoint, tmp_path: Path):
    """Transformers reads ``config.4.0.0.json`` where ``config.json`` names it, and with it the code that it names."""
    source, ran = checkpoint("llama"), tmp_path / "ran"
    plant(source, "evil.py", ran)
    config = json.loads((source / "config.json").read_text())
    named = config | {"auto_map": {"AutoConfig": f"{source}--evil.C"}}
    (source / "config.4.0.0.json").write_text(json.dumps(named))
    (source / "config.json").write_text(json.dumps(config | {"configuration_files": ["config.4.0.0.json"]}))
    with pytest.raises(UnsupportedModel, match="configuration_files"):
        convert_checkpoint(str(source), tmp_path / "out", check=require_verified())
    assert not ran.exists()


def test_a_module_of_the_source_with_the_runtimes_name_does_not_replace_it(checkpoint, tmp_path: Path):
    source, ran = checkpoint("llama"), tmp_path / "ran"
    for name in RUNTIMES:
        plant(source, name, ran)
    out = convert_checkpoint(str(source), tmp_path / "out").out
    assert "open(" not in (out / "modeling_prefold.py").read_text()[:100]
    assert verify_checkpoint(str(source), out).passed
    assert not ran.exists()


def test_what_passes_at_conversion_passes_afterwards(checkpoint, tmp_path: Path):
    source = checkpoint("llama")
    for name in ("prefold.json", "README.source.md", "README.md"):
        (source / name).write_text(f"the source's own {name}")
    out = convert_checkpoint(str(source), source / "folded", check=require_verified()).out
    assert "the source's own README.md" in (out / "README.source.md").read_text()
    assert verify_checkpoint(str(source), out).passed


def test_trusted_code_is_listed_with_its_hash_and_nothing_else_goes_along(own_code: Path, tmp_path: Path):
    plant(own_code, "unrelated.py", tmp_path / "ran")
    options = FoldOptions(trust_remote_code=True)
    check = require_verified()
    conversion = convert_checkpoint(str(own_code), tmp_path / "out", options=options, check=check)
    hashes = json.loads((conversion.out / "config.json").read_text())["prefold"]["runtime_sha256"]
    assert {path.name for path in conversion.out.glob("*.py")} == hashes.keys()
    assert {"modeling_own.py", "configuration_own.py"} <= hashes.keys()
    assert conversion.left_out == ["unrelated.py"]

    plant(conversion.out, "configuration_own.py", tmp_path / "ran")
    verification = verify_checkpoint(str(own_code), conversion.out, trust_remote_code=True)
    assert verification.checks["structure"].problems == [
        "configuration_own.py: not the file that was written (its hash differs)"
    ]
    assert not (tmp_path / "ran").exists()
