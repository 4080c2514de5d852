"""What the two models are asked to continue."""

from itertools import compress
from operator import not_
from pathlib import Path

import torch
from transformers import AutoTokenizer

from prefold.convert.errors import UsageError
from prefold.convert.first_layer import quiet_loading

TEXTS = (
    "In the beginning there was a small town by the sea, and in the town",
    "The three most important things to know about memory bandwidth are",
    "def fibonacci(n: int) -> int:\n",
    "Dear Sir or Madam,",
)
LONGEST = 64
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
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        if texts:
            raise UsageError(f"{folder}: its tokenizer does not load, so prompts cannot be read: {error}") from error
        return made
    written = [tokenizer(text)["input_ids"][:longest] for text in texts or TEXTS]
    usable = [bool(ids) and max(ids) < vocabulary for ids in written]
    for text in compress(texts or (), map(not_, usable)):
        raise UsageError(f"{text!r}: the source has no tokens for this prompt")
    return [*compress(written, usable), *made]
