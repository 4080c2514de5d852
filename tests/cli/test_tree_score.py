"""``prefold tree score``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import random_model, small_config


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    file = tmp_path / "prompt.txt"
    file.write_text("to be or not to be")
    return file


def test_the_likeliest_is_marked(prefold: Callable[..., Any], llama: Path, prompt: Path, tmp_path: Path):
    file = tmp_path / "answers.txt"
    file.write_text(" that is the question\n to be\n be\n")
    ran = prefold("tree", "score", llama, "--prompt-file", prompt, "--continuations", file)
    assert ran.code == 0, ran.err
    assert [line.split()[0] == "best" for line in ran.out.splitlines()[1:]].count(True) == 1
    assert len(ran.out.splitlines()) == 4


def test_json_has_every_tokens_share(prefold: Callable[..., Any], llama: Path, prompt: Path, tmp_path: Path):
    file = tmp_path / "answers.json"
    file.write_text(json.dumps([" that is", [5, 6, 7]]))
    ran = prefold("tree", "score", llama, "--prompt-file", prompt, "--continuations", file, "--json")
    found = json.loads(ran.out)
    assert [each["text"] for each in found["continuations"]] == [" that is", None]
    assert found["continuations"][1]["tokens"] == [5, 6, 7]
    for each in found["continuations"]:
        assert len(each["log_probs"]) == len(each["tokens"])
        assert each["log_likelihood"] == pytest.approx(sum(each["log_probs"]))
    likelihoods = [each["log_likelihood"] for each in found["continuations"]]
    assert likelihoods[found["best"]] == max(likelihoods)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "no continuation"),
        ("{}", "no continuation"),
        ("[3]", "a text, or a list of token ids"),
        ("[[]]", "no token"),
        ("[[97]]", "token 97 of a vocabulary of 97"),
        ("[", "not JSON"),
    ],
)
def test_what_is_no_continuation_is_refused(
    prefold: Callable[..., Any], llama: Path, prompt: Path, tmp_path: Path, content: str, why: str
):
    file = tmp_path / "answers.json"
    file.write_text(content)
    ran = prefold("tree", "score", llama, "--prompt-file", prompt, "--continuations", file)
    assert ran.code == 2
    assert why in ran.err


def test_texts_need_a_prompt_that_is_text(prefold: Callable[..., Any], llama: Path, tmp_path: Path):
    (tmp_path / "prompt.json").write_text("[3, 4]")
    (tmp_path / "answers.txt").write_text("to be")
    files = ("--prompt-file", tmp_path / "prompt.json", "--continuations", tmp_path / "answers.txt")
    ran = prefold("tree", "score", llama, *files)
    assert (ran.code, ran.out) == (2, "")
    assert "texts need a prompt that is text" in ran.err


def test_a_model_without_such_attention_is_unsupported(prefold: Callable[..., Any], tmp_path: Path):
    random_model(small_config("bloom")).save_pretrained(tmp_path / "bloom")
    for name, content in (("prompt.json", "[3, 4]"), ("answers.json", "[[5]]")):
        (tmp_path / name).write_text(content)
    files = ("--prompt-file", tmp_path / "prompt.json", "--continuations", tmp_path / "answers.json")
    assert prefold("tree", "score", tmp_path / "bloom", *files).code == 3
