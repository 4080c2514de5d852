"""What the files alone give away, without a model being run."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefold.convert.checkpoint.files import CARD, REPORT, RUNTIMES
from prefold.convert.checkpoint.source import open_folder, open_source
from prefold.convert.prepare import prepare_source
from prefold.convert.write import folded_config
from prefold.verify.structure import ExpectedCheckpoint, check_structure, find_differences, find_refusals
from tests.verify import faults
from tests.verify.conftest import Pair

NORM = "model.layers.1.input_layernorm.weight"
STALE = "model.embed_tokens.weight: not the table that was written (its hash differs)"
Breakable = Callable[[Pair], Pair]


@pytest.fixture(scope="module")
def expected(llama: Pair) -> ExpectedCheckpoint:
    """Return what the fold should be."""
    known = prepare_source(open_source(str(llama.source)))
    code = {name: (llama.folded / name).read_bytes() for name in RUNTIMES}
    return ExpectedCheckpoint(known, folded_config(known, code), code)


def test_nothing_is_wrong_with_what_was_written(llama: Pair, expected: ExpectedCheckpoint):
    folded = open_folder(llama.folded)
    assert find_refusals(expected, folded) == []
    assert find_differences(expected, folded) == []


@pytest.mark.parametrize(
    "fault",
    [
        faults.forget_norm_gain,
        faults.swap_columns,
        faults.roll_keys_to_next_token,
        faults.roll_keys_along_width,
        lambda _, folded: faults.spoil_row(folded, 5),
        lambda _, folded: faults.spoil_row(folded, 5, torch.nan),
        lambda _, folded: faults.edit_config(lambda config: config["prefold"].pop("tensor_sha256"))(folded),
        lambda _, folded: faults.edit_config(lambda config: config["prefold"]["tensor_sha256"].clear())(folded),
    ],
)
def test_a_table_that_is_not_the_one_of_the_hash_is_found(
    fault: Callable[[Path, Path], None], llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    fault(pair.source, pair.folded)
    assert find_differences(expected, open_folder(pair.folded)) == [STALE]


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (lambda folded: faults.flip_bit(folded, NORM), f"{NORM}: not the source's bytes"),
        (lambda folded: faults.widen_tensor(folded, NORM), f"{NORM}: not the source's bytes"),
        (lambda folded: faults.drop_tensor(folded, NORM), f"{NORM}: missing"),
        (lambda folded: faults.add_tensor(folded, "more"), "more: unexpected"),
        (lambda folded: (folded / "generation_config.json").unlink(), "generation_config.json: missing"),
    ],
)
def test_a_tensor_or_file_that_is_not_the_sources_is_found_by_name(
    fault: Callable[[Path], object], line: str, llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    fault(pair.folded)
    assert find_differences(expected, open_folder(pair.folded)) == [line]


@pytest.mark.parametrize("name", [CARD, REPORT])
def test_what_prefold_itself_writes_about_a_checkpoint_may_change(
    name: str, llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    (pair.folded / name).write_text("changed")
    assert find_differences(expected, open_folder(pair.folded)) == []


@pytest.mark.parametrize("key", ["source", "revision", "versions"])
def test_where_and_when_a_table_was_made_may_differ(
    key: str, llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    value = {"prefold": "0.0.0"} if key == "versions" else "elsewhere"
    faults.edit_config(lambda config: config["prefold"].update({key: value}))(pair.folded)
    assert find_refusals(expected, open_folder(pair.folded)) == []


def _link(name: str, target: str) -> Callable[[Path], None]:
    def fault(folded: Path) -> None:
        (folded / name).unlink(missing_ok=True)
        (folded / name).symlink_to(target)

    return fault


def _add(name: str) -> Callable[[Path], None]:
    def fault(folded: Path) -> None:
        (folded / name).parent.mkdir(parents=True, exist_ok=True)
        (folded / name).write_text("raise SystemExit('ran')")

    return fault


ADDED = ("a.jinja", "a.safetensors", "a.py", "custom_generate/generate.py", "sub/deep/a.json", ".hidden/a.py",
         ".env", "pytorch_model.bin", "__pycache__/a.pyc", ".gitattributes.py", ".gitignore/a.py",
         ".cache/a.py")  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        *((_add(name), f"{name}: unexpected, the source has no such file") for name in ADDED),
        (
            lambda folded: (folded / "generation_config.json").write_text("{}"),
            "generation_config.json: not the source's bytes",
        ),
        (
            lambda folded: faults.edit_runtime(folded, hidden=True),
            "modeling_prefold.py: not the one that this version writes: convert again",
        ),
        (
            _link("README.md", "/etc/hostname"),
            "README.md: a link that leads out of the checkpoint: put the file itself there",
        ),
        (_link("a", "/etc"), "a: a link that leads out of the checkpoint: put the file itself there"),
        (_link("a", "nowhere"), "a: is missing, or a link that leads nowhere"),
        (lambda folded: os.mkfifo(folded / "a"), "a: no regular file"),
    ],
)
def test_what_this_version_would_not_write_is_refused_before_anything_is_loaded(
    fault: Callable[[Path], object], line: str, llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    fault(pair.folded)
    assert find_refusals(expected, open_folder(pair.folded)) == [line]


def _dotted(config: dict[str, Any]) -> None:
    """Point to other code, and say under one long key what should be said under two."""
    config["auto_map.AutoModelForCausalLM"] = config["auto_map"].pop("AutoModelForCausalLM")
    config["auto_map"]["AutoModelForCausalLM"] = "other.Model"


CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "dotted key": (_dotted, "auto_map.AutoModelForCausalLM is 'other.Model'"),
    "one for true": (lambda config: config.update(use_cache=1), "use_cache is 1, should be True"),
    "a fraction": (lambda config: config.update(num_hidden_layers=3.0), "num_hidden_layers is 3.0, should be 3"),
    "another key": (lambda config: config["prefold"].update(made_up=1), "prefold.made_up is 1, should be None"),
    "a key that begins alike": (
        lambda config: config.update({"prefold.tensor_sha256": 1}),
        "prefold.tensor_sha256 is 1",
    ),
    "hashes are no object": (
        lambda config: config["prefold"].update(tensor_sha256=[1]),
        "prefold.tensor_sha256 is no dict",
    ),
    "no hashes of code": (
        lambda config: config["prefold"].update(runtime_sha256=3),
        "prefold.runtime_sha256 is no dict",
    ),
    "circumstances": (lambda config: config["prefold"].update(computed=3), "prefold.computed is no dict"),
    "chunks": (
        lambda config: config["prefold"]["computed"].update(chunk_tokens=[0]),
        "prefold.computed.chunk_tokens is [0]",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_only_looks_like_the_right_one_is_refused(
    name: str, llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    change, line = CONFIGS[name]
    faults.edit_config(change)(pair.folded)
    problems = find_refusals(expected, open_folder(pair.folded))
    assert any(problem.startswith(f"config.json: {line}") for problem in problems), problems


def test_weights_beside_the_shards_are_refused(llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable):
    """Loaders take them for all that there is, and never look at the index."""
    pair = breakable(llama)
    (pair.folded / "model.safetensors").write_bytes((pair.folded / faults.SHARD).read_bytes())
    problems = find_refusals(expected, open_folder(pair.folded))
    assert "model.safetensors: unexpected, the source has no such file" in problems


def test_what_git_and_the_hubs_client_leave_in_a_folder_is_no_part_of_it(
    llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    for name in (".gitattributes", ".git/config", ".cache/huggingface/download/a.metadata"):
        _add(name)(pair.folded)
    assert find_refusals(expected, open_folder(pair.folded)) == []


LOADING = {
    "missing_keys": [],
    "unexpected_keys": [],
    "mismatched_keys": [],
    "class": "LlamaForCausalLM",
    "module": "transformers_modules.folded.modeling_prefold",
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"missing_keys": ["a.weight"]}, "a.weight: missing when transformers loads it"),
        ({"unexpected_keys": ["a.weight"]}, "a.weight: unexpected when transformers loads it"),
        ({"mismatched_keys": ["a.weight"]}, "a.weight: mismatched when transformers loads it"),
        (
            {"module": "prefold.runtime.modeling_prefold"},
            "prefold.runtime.modeling_prefold.LlamaForCausalLM: loaded in place of the module in the"
            " checkpoint's folder",
        ),
    ],
)
def test_keys_and_module_that_transformers_did_not_find_fail(
    changes: dict[str, Any], line: str, expected: ExpectedCheckpoint
):
    assert check_structure(expected, [], LOADING, LOADING).passed
    outcome = check_structure(expected, [], LOADING | changes, LOADING)
    assert outcome.problems == [line]
    assert outcome.summary == "1 problem"


def test_a_cast_model_may_have_cast_tensors_and_no_others(
    llama: Pair, expected: ExpectedCheckpoint, breakable: Breakable
):
    pair = breakable(llama)
    with faults.edited_tensors(pair.folded / faults.SHARD) as tensors:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()
    half = replace(expected, known=replace(expected.known, dtype=torch.bfloat16))
    found = find_differences(half, open_folder(pair.folded))
    assert found == []
    assert all("not the source's bytes" in line for line in find_differences(expected, open_folder(pair.folded)))
    assert len(find_differences(expected, open_folder(pair.folded))) == len(expected.untouched)


def test_what_the_source_holds_for_nobody_may_stay_unexpected(expected: ExpectedCheckpoint):
    idle = LOADING | {"unexpected_keys": ["pooler.weight"]}
    assert check_structure(expected, [], idle, idle).passed
    assert not check_structure(expected, [], idle, LOADING).passed
    missing = LOADING | {"missing_keys": ["pooler.weight"]}
    assert not check_structure(expected, [], missing, missing).passed
