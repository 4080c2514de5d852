"""Checkpoints with all that a client asks for, as people's have it: tokenizers, feature extractors."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSpeechSeq2Seq,
    PreTrainedTokenizerFast,
    Speech2TextFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from prefold.convert import convert_checkpoint
from tests.conftest import VOCABULARY, random_model, small_config

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
WORDS = (*SPECIAL.values(), "to", "be", "or", "not", "that", "is", "the", "question", "whether", "it", "nobler")


def folded(source: Path) -> Path:
    """Fold a checkpoint into a folder beside it."""
    return convert_checkpoint(str(source), source.with_name(f"{source.name}-folded")).out


def text_checkpoint(folder: Path, model_type: str, **changes: Any) -> Path:
    """Save a small model of text with a tokenizer of whole words."""
    random_model(small_config(model_type, **changes)).save_pretrained(folder)
    save_words(folder)
    return folder


def headed_checkpoint(folder: Path, model_type: str, auto: Any) -> Path:
    """Save the same as the class that an auto class has for it, with a head for three labels."""
    torch.manual_seed(0)
    config = small_config(model_type, num_labels=3, initializer_range=0.3)
    auto.from_config(config).save_pretrained(folder)
    save_words(folder)
    return folder


def save_words(folder: Path) -> None:
    """Save a tokenizer that has a word for every token of the small models."""
    words = [*WORDS, *(f"word{number}" for number in range(len(WORDS), VOCABULARY))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)


def save_bytes(folder: Path, *special: str, merges: tuple[str, ...] = ()) -> dict[str, int]:
    """Save a vocabulary of bytes and merges, as the first GPT-2 has it, and nothing else; returns it."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), *special]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return vocabulary


def whisper(folder: Path) -> Path:
    """Save a small Whisper, whose files name neither a tokenizer nor a processor."""
    folder.mkdir()
    names = ("<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>")
    end, start, _, timestamps = [save_bytes(folder, *names)[name] for name in names]
    special = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    silent = {"suppress_tokens": None, "begin_suppress_tokens": None}
    sound = {"num_mel_bins": 80, "max_source_positions": 1500}
    model = random_model(small_config("whisper", vocab_size=timestamps + 1, **special, **silent, **sound))
    model.generation_config.no_timestamps_token_id, model.generation_config.is_multilingual = timestamps, False
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


_HEARS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_SIDES = ("encoder", "decoder")
_SPEECH: dict[str, dict[str, Any]] = {
    "moonshine": {"hidden_size": 32, "intermediate_size": 48, "partial_rotary_factor": 0.5, "initializer_range": 0.3}
    | {
        f"{side}_num_{counted}": count
        for side in _SIDES
        for counted, count in (("hidden_layers", 2), ("attention_heads", 4))
    },
    "speech_to_text": {"d_model": 32, "conv_channels": 16, "input_feat_per_channel": 16, "init_std": 0.3}
    | {f"{side}_{counted}": count for side in _SIDES for counted, count in (("layers", 2), ("ffn_dim", 48))}
    | {f"{side}_attention_heads": 4 for side in _SIDES},
}
_EXTRACTORS: dict[str, Any] = {
    "moonshine": lambda: Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
    "speech_to_text": lambda: Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16),
}


def speech_checkpoint(folder: Path, model_type: str) -> Path:
    """Save a small model that hears and writes, with a tokenizer of whole words."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **_HEARS, **_SPEECH[model_type])
    AutoModelForSpeechSeq2Seq.from_config(config).save_pretrained(folder)
    _EXTRACTORS[model_type]().save_pretrained(folder)
    save_words(folder)
    return folder
