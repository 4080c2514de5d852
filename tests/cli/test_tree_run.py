"""``prefold tree run``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import random_model, small_config
from tests.runtime.pairs import make_folded
from tests.verify.tokenizer import save_tokenizer


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    file = tmp_path / "prompt.txt"
    file.write_text("to be or not to be that is the question")
    return file


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(list(range(3, 43))))
    return file


def test_continuations_are_shown_with_what_they_cost(prefold: Callable[..., Any], llama: Path, prompt: Path):
    ran = prefold("tree", "run", llama, "--prompt-file", prompt, "--branches", 3, "--max-new-tokens", 8)
    assert ran.code == 0, ran.err
    assert [line.split(":")[0] for line in ran.out.splitlines()[:3]] == ["1", "2", "3"]
    assert "keys and values read" in ran.out
    assert "3 of 3 continuations are the same" in ran.out


def test_json_has_the_reads_of_both(prefold: Callable[..., Any], llama: Path, token_file: Path):
    ran = prefold(
        *("tree", "run", llama, "--prompt-file", token_file, "--branches", 4, "--max-new-tokens", 9, "--json")
    )
    found, of_token = json.loads(ran.out), 2 * 2 * 8 * 4 * 3  # keys and values, heads, width, bytes, layers
    assert found["prompt_tokens"] == 40
    assert found["tree"]["decode_steps"] == found["transformers"]["decode_steps"] == 8
    assert found["transformers"]["read_bytes"] == sum(4 * (40 + step) for step in range(1, 9)) * of_token
    tokens = [each["tokens"] for each in found["continuations"]]
    shared = sum(len({tuple(row[: step + 1]) for row in tokens}) == 1 for step in range(8))
    assert found["tree"]["read_bytes"] == sum(40 + 4 * step for step in range(1, 9)) * of_token or shared
    assert found["same_continuations"] == 4
    assert found["continuations"][0]["text"] is None


def test_a_cache_that_the_generation_config_names_is_not_asked_for(
    prefold: Callable[..., Any], prompt: Path, tmp_path: Path
):
    random_model(small_config("llama")).save_pretrained(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama")
    settings = tmp_path / "llama" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"cache_implementation": "static"}))
    ran = prefold("tree", "run", tmp_path / "llama", "--prompt-file", prompt, "--branches", 2, "--max-new-tokens", 4)
    assert ran.code == 0, ran.err
    assert "2 of 2 continuations are the same" in ran.out


def test_transformers_may_be_left_out(prefold: Callable[..., Any], llama: Path, prompt: Path):
    ran = prefold(
        *("tree", "run", llama, "--prompt-file", prompt, "--branches", 2, "--max-new-tokens", 3),
        *("--no-compare", "--json"),
    )
    found = json.loads(ran.out)
    assert found["transformers"] is None
    assert found["same_continuations"] is None
    assert isinstance(found["continuations"][0]["text"], str)


def test_a_folded_checkpoint_runs_too(prefold: Callable[..., Any], tmp_path: Path, token_file: Path):
    folded = make_folded(tmp_path)
    ran = prefold(
        *("tree", "run", folded, "--prompt-file", token_file, "--max-new-tokens", 5, "--trust-remote-code", "--json")
    )
    assert json.loads(ran.out)["same_continuations"] == 4


@pytest.mark.parametrize("options", [("run",), ("score", "--continuations", "{file}")], ids=["run", "score"])
def test_a_folded_checkpoint_needs_trust(
    prefold: Callable[..., Any], tmp_path: Path, token_file: Path, options: tuple[str, ...]
):
    folded = make_folded(tmp_path)
    (tmp_path / "answers.json").write_text("[[5]]")
    command, *more = (each.format(file=tmp_path / "answers.json") for each in options)
    ran = prefold("tree", command, folded, "--prompt-file", token_file, *more)
    assert ran.code == 2
    assert ran.err.endswith("a folded checkpoint runs on the module beside it: pass --trust-remote-code\n")
    assert len(ran.err.splitlines()) == 1


def test_weights_that_are_not_the_models_are_unsupported(prefold: Callable[..., Any], tmp_path: Path, token_file: Path):
    random_model(small_config("llama")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    ran = prefold("tree", "run", tmp_path, "--prompt-file", token_file)
    assert ran.code == 3
    assert "no causal language model that transformers loads" in ran.err


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("bloom", "does not attend through transformers' AttentionInterface"),
        ("mamba", "no past_key_values"),
        ("jamba", "keep a state of another kind"),
        ("deepseek_v3", "AttentionInterface as they are"),
    ],
)
def test_a_model_without_such_attention_is_unsupported(
    prefold: Callable[..., Any], tmp_path: Path, token_file: Path, model_type: str, why: str
):
    random_model(small_config(model_type)).save_pretrained(tmp_path / model_type)
    ran = prefold("tree", "run", tmp_path / model_type, "--prompt-file", token_file)
    assert ran.code == 3
    assert why in ran.err
    assert len(ran.err.strip().splitlines()) == 2  # what is done, and why it is not


def test_a_checkpoint_that_is_no_causal_language_model_is_unsupported(
    prefold: Callable[..., Any], tmp_path: Path, token_file: Path
):
    random_model(small_config("t5")).save_pretrained(tmp_path / "t5")
    ran = prefold("tree", "run", tmp_path / "t5", "--prompt-file", token_file)
    assert (ran.code, len(ran.err.strip().splitlines())) == (3, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "no token"),
        ("[1, 97]", "token 97 of a vocabulary of 97"),
        ("[-1]", "token -1 of a vocabulary"),
        ("{}", "not a JSON list of token ids"),
        ("[1", "not JSON"),
        ("[true]", "not a JSON list of token ids"),
    ],
)
def test_what_is_no_prompt_is_refused(prefold: Callable[..., Any], llama: Path, tmp_path: Path, content: str, why: str):
    file = tmp_path / "wrong.json"
    file.write_text(content)
    ran = prefold("tree", "run", llama, "--prompt-file", file)
    assert ran.code == 2
    assert why in ran.err


def test_pages_that_run_out_are_a_matter_of_usage(prefold: Callable[..., Any], llama: Path, token_file: Path):
    ran = prefold("tree", "run", llama, "--prompt-file", token_file, "--max-pages", 4)
    assert ran.code == 2
    assert "max_pages" in ran.err


@pytest.mark.parametrize(
    "arguments", [["--branches", 0], ["--max-new-tokens", 0], ["--prompt-file", "absent.txt"], ["--dtype", "int4"]]
)
def test_wrong_options_are_refused(prefold: Callable[..., Any], llama: Path, prompt: Path, arguments: list[Any]):
    assert prefold("tree", "run", llama, "--prompt-file", prompt, *arguments).code == 2


def test_a_prompt_of_words_needs_a_tokenizer(prefold: Callable[..., Any], tmp_path: Path, prompt: Path):
    random_model(small_config("llama")).save_pretrained(tmp_path / "bare")
    ran = prefold("tree", "run", tmp_path / "bare", "--prompt-file", prompt)
    assert ran.code == 2
    assert "its tokenizer does not load" in ran.err


def test_a_model_that_is_not_there_is_refused(prefold: Callable[..., Any], tmp_path: Path, prompt: Path):
    ran = prefold("tree", "run", tmp_path / "absent", "--prompt-file", prompt)
    assert ran.code == 2
    assert "no such file or folder" in ran.err
