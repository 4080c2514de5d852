"""A tokenizer of a few words, as a checkpoint brings it."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("<unk>", "<s>", "</s>", "to", "be", "or", "not", "that", "is", "the", "question")


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer that knows ``WORDS`` into a checkpoint's folder."""
    words = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
