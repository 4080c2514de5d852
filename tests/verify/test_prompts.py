"""What the two models are asked to continue."""

import shutil
from pathlib import Path

import pytest

from prefold.convert import UsageError
from prefold.verify import read_prompts
from prefold.verify.probe.passages import PASSAGES
from prefold.verify.prompts import TEXTS, token_passages, token_prompts
from tests.verify.conftest import Pair
from tests.verify.tokenizer import save_tokenizer


def test_prompts_are_the_lines_of_a_file_that_say_something(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("one two\n\n  \nthree\n")
    assert read_prompts(tmp_path / "prompts.txt") == ("one two", "three")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused_with_its_name(tmp_path: Path, content: bytes | None):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=r"prompts\.txt: ") as caught:
        read_prompts(file)
    assert len(str(caught.value).splitlines()) == 1


def test_a_source_without_a_tokenizer_gets_random_prompts_the_same_each_time(tmp_path: Path):
    made = token_prompts(tmp_path, 50, None)
    assert made == token_prompts(tmp_path, 50, None)
    assert [len(ids) for ids in made] == [48, 7]
    assert all(0 <= token < 50 for ids in made for token in ids)


def test_texts_come_before_random_prompts(tmp_path: Path):
    save_tokenizer(tmp_path)
    own = token_prompts(tmp_path, 97, None)
    assert len(own) == len(TEXTS) + 2
    assert token_prompts(tmp_path, 97, ("to be", "or not"))[:2] == [[3, 4], [5, 6]]


def test_long_texts_are_cut(tmp_path: Path):
    save_tokenizer(tmp_path)
    assert len(token_prompts(tmp_path, 97, ("to be " * 100,))[0]) == 64


def test_texts_need_a_tokenizer(tmp_path: Path):
    with pytest.raises(UsageError, match="its tokenizer does not load, so prompts cannot be read"):
        token_prompts(tmp_path, 50, ("to be",))


@pytest.mark.parametrize("broken", ["{", "{}", '{"model": 3}'])
def test_a_broken_tokenizer_is_a_usage_error_where_texts_were_given(tmp_path: Path, broken: str):
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(broken)
    assert len(token_prompts(tmp_path, 97, None)) == 2
    with pytest.raises(UsageError) as caught:
        token_prompts(tmp_path, 97, ("to be",))
    assert len(str(caught.value).splitlines()) == 1


def test_a_text_with_no_token_of_the_model_is_refused_and_not_left_out(tmp_path: Path):
    save_tokenizer(tmp_path)
    with pytest.raises(UsageError, match="'not'"):
        token_prompts(tmp_path, 6, ("to be", "not"))


def test_passages_are_text_of_several_kinds_or_what_was_given(tmp_path: Path):
    save_tokenizer(tmp_path)
    own = token_passages(tmp_path, 97, None, longest=50)
    assert [len(ids) for ids in own] == [50] * len(PASSAGES)
    assert token_passages(tmp_path, 97, ("to be", "or not"), longest=50) == [[3, 4], [5, 6]]


def test_passages_without_a_tokenizer_are_none_and_given_ones_are_refused(tmp_path: Path):
    assert token_passages(tmp_path, 97, None, longest=50) == []
    with pytest.raises(UsageError, match="its tokenizer does not load"):
        token_passages(tmp_path, 97, ("to be",), longest=50)


@pytest.mark.parametrize(("vocabulary", "tokens"), [(1 << 20, 32), (1 << 22, 8), (1 << 18, 128)])
def test_of_a_large_vocabulary_fewer_positions_are_asked_for(tmp_path: Path, vocabulary: int, tokens: int):
    save_tokenizer(tmp_path)
    assert sum(map(len, token_passages(tmp_path, vocabulary, None, longest=50))) == tokens


def test_passages_that_are_no_tokens_of_the_model_are_left_out(tmp_path: Path):
    save_tokenizer(tmp_path)
    assert token_passages(tmp_path, 6, ("to be", "not"), longest=50) == [[3, 4]]


@pytest.mark.parametrize("text", ["[]", "{", '{"model": null}', '{"model": {"type": "none"}}', '{"a":' * 5000])
def test_a_broken_tokenizer_is_none(llama: Pair, tmp_path: Path, text: str):
    folder = tmp_path / "broken"
    shutil.copytree(llama.source, folder)
    (folder / "tokenizer.json").write_text(text)
    assert token_prompts(folder, 257, None) == token_prompts(llama.source, 257, None)
    with pytest.raises(UsageError, match="its tokenizer does not load"):
        token_prompts(folder, 257, ("text",))
