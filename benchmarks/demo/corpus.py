"""The text of the demo checkpoint: fetched, freed of markup, cut into blocks and split."""

import html
import re
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BLOCK_CHARS",
    "HELD_OUT_EVERY",
    "Corpus",
    "DemoError",
    "TextTooShortError",
    "TextUnavailableError",
    "load_corpus",
    "shared_runs",
]

PACKAGE = "sword-text-web"
RIGHTS = (
    "It holds the World English Bible, which its copyright file places in the public domain; "
    "notes, titles and second versions of the same book were left out."
)
# Greek Esther and Daniel retell Esther and Daniel, so a held-out block could have its twin in training.
RETOLD_BOOKS = ("EsthGr", "DanGr")
BLOCK_CHARS, HELD_OUT_EVERY = 5000, 33


class DemoError(Exception):
    """A condition the person running the script can put right."""


class TextUnavailableError(DemoError):
    """The training text could not be read or fetched."""


class TextTooShortError(DemoError):
    """The training text does not fill enough blocks to hold some out."""


@dataclass(frozen=True)
class Corpus:
    """Blocks of plain text, each ending at a paragraph end, with the words that say where they came from."""

    source: str
    rights: str
    train: list[str]
    held_out: list[str]


def run(command: list[str], folder: Path) -> str:
    """Return what a system command wrote to standard output, run in the given folder."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise TextUnavailableError(f"{command[0]} is not installed; give a text with --text FILE") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TextUnavailableError(f"{' '.join(command[:2])} failed: {reason}") from error


def unpack_module(stem: Path) -> str:
    """Return the marked-up text of one testament of a SWORD zText module."""
    index = stem.with_suffix(".bzs").read_bytes()
    packed = stem.with_suffix(".bzz").read_bytes()
    # Each index entry is offset, packed size and unpacked size, 32-bit little-endian.
    entries = struct.iter_unpack("<III", index)
    return "<lg/>".join(zlib.decompress(packed[start : start + size]).decode() for start, size, _ in entries)


def drop_markup(osis: str) -> str:
    """Return plain text, paragraphs parted by a blank line and lines of verse by a line break."""
    retold = "|".join(RETOLD_BOOKS)
    osis = re.sub(rf'<div[^>]*osisID="(?:{retold})".*?(?=<div[^>]*type="book")', "", osis, flags=re.DOTALL)
    for kind in ("front", "introduction", "glossary"):
        osis = re.sub(rf'<div sID="(\w+)" type="{kind}"/>.*?<div eID="\1"[^>]*>', "", osis, flags=re.DOTALL)
    osis = re.sub(r"<(note|title|speaker|catchWord)\b.*?</\1>", " ", osis, flags=re.DOTALL)
    osis = re.sub(r'<div [^>]*type="x-p"/>|<lb[^>]*>|</?lg[^>]*>|<div[^>]*type="book"/>', "\n\n", osis)
    osis = re.sub(r"<l eID[^>]*>|</item>", "\n", osis)
    text = re.sub(r"[ \t]+", " ", html.unescape(re.sub(r"<[^>]*>", "", osis)))
    # A removed note leaves a space, which is wrong in front of closing punctuation.
    text = re.sub(r" ([,.;:?!)”’])", r"\1", text)  # noqa: RUF001
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text))


def fetch_package() -> tuple[str, str]:
    """Return the package's name with its version, and the plain text of the book in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["apt-get", "download", PACKAGE], folder)
        archive = next(folder.glob("*.deb"))
        version = run(["dpkg-deb", "-f", archive.name, "Version"], folder).strip()
        run(["dpkg-deb", "-x", archive.name, "."], folder)
        indexes = sorted(folder.rglob("*.bzs"), reverse=True)
        if not indexes:
            raise TextUnavailableError(f"{PACKAGE} {version} holds no text in a known form; use --text FILE")
        text = "\n\n".join(drop_markup(unpack_module(index)) for index in indexes)
    return f"Debian package `{PACKAGE}`, version {version}", text


def cut_blocks(text: str) -> list[str]:
    """Return whole paragraphs gathered into contiguous blocks of at least BLOCK_CHARS characters."""
    blocks: list[str] = []
    waiting: list[str] = []
    # A dictionary keeps the order and drops passages the module stores twice.
    for paragraph in dict.fromkeys(part.strip() for part in re.split(r"\n\s*\n", text)):
        waiting += [paragraph] if paragraph else []
        if sum(map(len, waiting)) >= BLOCK_CHARS:
            blocks.append("\n\n".join(waiting) + "\n")
            waiting = []
    return blocks


def load_corpus(path: Path | None) -> Corpus:
    """Return the text file, or the Debian package where no file is given, as training and held-out blocks."""
    try:
        source, text = (f"`{path.name}`", path.read_text("utf-8")) if path else fetch_package()
    except (OSError, UnicodeDecodeError) as error:
        raise TextUnavailableError(f"cannot read {path}: {error}") from error
    blocks = cut_blocks(text)
    if len(blocks) < HELD_OUT_EVERY:
        filled = f"{len(blocks)} blocks of {BLOCK_CHARS} characters"
        raise TextTooShortError(f"the text fills {filled}; at least {HELD_OUT_EVERY} are needed")
    offset = HELD_OUT_EVERY // 2
    train = [block for i, block in enumerate(blocks) if i % HELD_OUT_EVERY != offset]
    return Corpus(source, "" if path else RIGHTS, train, blocks[offset::HELD_OUT_EVERY])


def shared_runs(corpus: Corpus, words: int = 8) -> float:
    """Return the percentage of held-out word runs that also occur in the training part."""

    def runs(block: str) -> list[tuple[str, ...]]:
        """Return every run of that many words in the block."""
        split = block.split()
        return [tuple(split[i : i + words]) for i in range(len(split) - words + 1)]

    known = {found for block in corpus.train for found in runs(block)}
    held_out = [found for block in corpus.held_out for found in runs(block)]
    return 100 * sum(found in known for found in held_out) / len(held_out)
