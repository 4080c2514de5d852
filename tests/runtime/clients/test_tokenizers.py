"""Tokenizers and processors that transformers chooses by type, where a checkpoint's own files name no class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, GenerationConfig

from tests.conftest import random_model, small_config
from tests.runtime.clients.checkpoints import folded, save_bytes, whisper
from tests.runtime.clients.ways import STOCK, Way

TEXT = "Hello there, yous 12"


def _bytes(folder: Path) -> None:
    """Lay down what the first GPT-2 has: a vocabulary, merges, and a config that names no class."""
    save_bytes(folder, "<|endoftext|>", merges=("h e", "l l"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))


def _pieces(folder: Path) -> None:
    """Lay down what the first BERT has: a list of pieces, and a config that names no class."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "there", "##s", "you", "1", "##2", ","]
    (folder / "vocab.txt").write_text("\n".join([*words, ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def _fast(lay: Callable[[Path], None]) -> Callable[[Path], None]:
    """Lay down the same, and beside it the file that newer tokenizers read, as hubs have it."""

    def both(folder: Path) -> None:
        lay(folder)
        AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))

    return both


def _another_class(folder: Path) -> None:
    """Lay down what some Phi-3 have: the name of a class that transformers overrides for certain types."""
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789 ,.", "▁", "he", "ll"]
    merges = [("h", "e"), ("l", "l")]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "gpt2, vocab.json": ("gpt2", _bytes),
    "gpt2, tokenizer.json": ("gpt2", _fast(_bytes)),
    "bert, vocab.txt": ("bert", _pieces),
    "bert, tokenizer.json": ("bert", _fast(_pieces)),
    "phi3, another type's class": ("phi3", _another_class),
}


def _seen(checkpoint: Path, way: Way) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, **way.options)
    ids = tokenizer(TEXT)["input_ids"]
    said = [tokenizer.special_tokens_map, tokenizer.model_max_length, tokenizer.padding_side, tokenizer.decode(ids)]
    return [type(tokenizer), ids, *said]


@pytest.mark.parametrize("files", FILES)
def test_tokenizer_is_the_sources(files: str, way: Way, tmp_path: Path) -> None:
    model_type, lay = FILES[files]
    random_model(small_config(model_type, vocab_size=300)).save_pretrained(tmp_path / "source")
    lay(tmp_path / "source")
    expected = _seen(tmp_path / "source", STOCK)
    assert len(set(expected[1])) > 4
    assert _seen(folded(tmp_path / "source"), way) == expected


def test_processor_is_the_sources(way: Way, tmp_path: Path) -> None:
    source = whisper(tmp_path / "source")
    kinds = [
        [type(auto.from_pretrained(folder, **options)) for auto in (AutoProcessor, AutoFeatureExtractor, AutoTokenizer)]
        for folder, options in ((source, {}), (folded(source), way.options))
    ]
    assert kinds[0] == kinds[1]
    assert [kind.__name__ for kind in kinds[0]] == ["WhisperProcessor", "WhisperFeatureExtractor", "WhisperTokenizer"]


def test_generation_config_is_the_sources(tmp_path: Path) -> None:
    source = whisper(tmp_path / "source")
    assert GenerationConfig.from_pretrained(folded(source)) == GenerationConfig.from_pretrained(source)
