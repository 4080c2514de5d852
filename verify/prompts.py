"""Prompts that the two models continue."""

from itertools import accumulate, compress
from operator import not_
from pathlib import Path

import torch
from transformers import AutoTokenizer

from prefold.common.errors import UsageError
from prefold.convert import ModelFailed, model_code
from prefold.convert.fold import quiet_loading
from prefold.verify.probe.job import OUTPUT_VALUES
from prefold.verify.probe.passages import PASSAGES

TEXTS = (
    "In the beginning there was a small town by the sea, and in the town",
    "The three most important things to know about memory bandwidth are",
    "def fibonacci(n: int) -> int:\n",
    "Dear Sir or Madam,",
)
LONGEST, LONGEST_PASSAGE = 64, 256
_RANDOM_LENGTHS = (48, 7)


def read_prompts(file: Path) -> tuple[str, ...]:
    """Read prompts from a text file, one per line.

    Raises:
        UsageError: it cannot be read or holds none.
    """
    try:
        lines = tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as text: {error}") from error
    if not lines:
        raise UsageError(f"{file}: holds no prompts, one per line")
    return lines


def token_prompts(
    folder: Path,
    vocabulary: int,
    texts: tuple[str, ...] | None,
    *,
    longest: int = LONGEST,
    trust_remote_code: bool = False,
) -> list[list[int]]:
    """Tokenize prompts with the source's own tokenizer and add random ones, which reach tokens that text does not.

    None has more than ``longest`` tokens.

    Raises:
        UsageError: ``texts`` were given, and there is no tokenizer for them or one of them has no tokens.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, longest) for length in _RANDOM_LENGTHS]
    made = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    written = _tokenized(folder, texts, TEXTS, longest, trust_remote_code=trust_remote_code)
    usable = [bool(ids) and max(ids) < vocabulary for ids in written]
    for text in compress(texts or (), map(not_, usable)):
        raise UsageError(f"{text!r}: the source has no tokens for this prompt")
    return [*compress(written, usable), *made]


def token_passages(
    folder: Path,
    vocabulary: int,
    texts: tuple[str, ...] | None,
    *,
    longest: int,
    trust_remote_code: bool = False,
) -> list[list[int]]:
    """Tokenize ``texts``, or text of several kinds where there are none; nothing where there is no tokenizer.

    None has more than ``longest`` tokens, and the logits of all of them together fit well into memory.
    """
    written = _tokenized(folder, texts, PASSAGES, longest, trust_remote_code=trust_remote_code)
    usable = [ids for ids in written if ids and max(ids) < vocabulary]
    before = accumulate(map(len, usable), initial=0)
    room = OUTPUT_VALUES // vocabulary
    return [ids[: room - start] for ids, start in zip(usable, before, strict=False) if start < room]


def _tokenized(
    folder: Path, texts: tuple[str, ...] | None, default: tuple[str, ...], longest: int, *, trust_remote_code: bool
) -> list[list[int]]:
    """Return the first tokens of each text, or of each default one where there is a tokenizer for them."""
    try:
        with quiet_loading(), model_code():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            return [tokenizer(text)["input_ids"][:longest] for text in texts or default]
    except ModelFailed as failure:
        if texts:
            raise UsageError(
                f"{folder}: its tokenizer does not load, so prompts cannot be read: {failure}"
            ) from failure
        return []
