"""What the two models are asked to continue."""

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
_LONGEST = 64
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
    folder: Path, vocabulary: int, texts: tuple[str, ...] | None, *, trust_remote_code: bool = False
) -> list[list[int]]:
    """Tokenize prompts with the source's own tokenizer and add random ones, which reach tokens that text does not.

    Raises:
        UsageError: ``texts`` were given and there is no tokenizer for them.
    """
    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in _RANDOM_LENGTHS]
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        if texts:
            raise UsageError(f"{folder}: its tokenizer does not load, so prompts cannot be read: {error}") from error
        return made
    written = [tokenizer(text)["input_ids"][:_LONGEST] for text in texts or TEXTS]
    usable = [ids for ids in written if ids and max(ids) < vocabulary]
    return [*usable, *made]
