"""Whether a difference in what text becomes is seen."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefold.verify.probe.text import measure_text, sample_texts
from prefold.verify.text import check_text
from tests.conftest import all_bytes, random_model, small_config
from tests.verify.conftest import Pair
from tests.verify.tokenizer import save_tokenizer

CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "source"
    random_model(small_config("llama")).save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    return measure_text(str(folder), trust_remote_code=False)


def test_the_texts_are_of_many_kinds():
    texts = sample_texts()
    assert len(texts) > 300
    assert {"", "\n", "  안녕하세요  안녕하세요", "def merge(left: list[int], right: list[int]) -> list[int]:"} <= {
        *texts
    }


def test_equal_checkpoints_are_equal(measured: dict[str, Any], folder: Path):
    outcome = check_text(measured, measure_text(str(folder), trust_remote_code=False))
    assert outcome.passed
    assert "texts equal, and the chat template renders alike" in outcome.summary
    assert outcome.figures["tasks"] == ["text-generation", "decision"]


def _edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


CHANGES: dict[str, tuple[Any, str]] = {
    "another id": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text().replace('"to": 3', '"zu": 3')
        ),
        "9 other texts differ, too",
    ),
    "no special token": (lambda folder: _edit_json(folder / "tokenizer_config.json", unk_token=None), "special"),
    "another template": (lambda folder: (folder / "chat_template.jinja").write_text(f"{CHAT}."), "chat: "),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "classes: {'AutoTokenizer': 'ValueError'",
    ),
    "another architecture": (
        lambda folder: _edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"]),
        "tasks: ['text-classification'",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_difference_is_seen(name: str, measured: dict[str, Any], folder: Path, tmp_path: Path):
    for file, content in all_bytes(folder).items():
        (tmp_path / file).write_bytes(content)
    change, line = CHANGES[name]
    change(tmp_path)
    outcome = check_text(measured, measure_text(str(tmp_path), trust_remote_code=False))
    assert not outcome.passed
    assert any(line in problem for problem in outcome.problems), outcome.problems


def test_neither_has_a_tokenizer(llama: Pair):
    source, folded = (measure_text(str(each), trust_remote_code=False) for each in (llama.source, llama.folded))
    outcome = check_text(source, folded)
    assert outcome.passed
    assert outcome.summary.startswith("neither has a tokenizer that loads here")
