"""How few rows of a large vocabulary's table a text uses, and decode speed with a tenth of them in memory.

``python resident.py`` needs mistral-common for its tokenizer, Debian's sword-text-web and manual pages for texts.
"""

import gzip
import sys
import sysconfig
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import machine
import torch
from cache import drop, resident_share
from demo.corpus import load_corpus
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from page import table
from placement_speed import share_weights
from shapes import LARGE_TABLE, built
from timing import Prompt, compared, in_turn, load, read_all

from prefold.convert import convert_checkpoint
from prefold.convert.checkpoint.files import TABLE

_VOCABULARY = 131_072  # the largest that a package carries a tokenizer for
_SHARES = (0.01, 0.1)  # of the rows, in memory
_CHARACTERS, _LONGEST = 3_000_000, 100_000  # of a kind of text, and of one text
_STEPS, _BATCHES, _ROUNDS = 16, (1, 8), 31
_SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8}
_MANUAL = Path("/usr/share/man")
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_FILES = {
    "Python's standard library": (_LIBRARY, "[a-r]*/*.py"),
    "descriptions of Python packages": (Path(sysconfig.get_path("purelib")), "*.dist-info/METADATA"),
    "manual pages, English": (_MANUAL, "man*/*.gz"),
    "manual pages, other languages": (_MANUAL, "??/man*/*.gz"),
}


def _read(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode(errors="ignore")


def _kinds() -> dict[str, list[list[int]]]:
    """Return the tokens of texts of several kinds, each in an order of chance."""
    encode = MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer.encode
    found: dict[str, Sequence[str | Path]] = {"World English Bible": load_corpus(None).train}
    found |= {name: sorted(folder.glob(pattern)) for name, (folder, pattern) in _FILES.items()}
    kinds = dict[str, list[list[int]]]()
    for name, texts in found.items():
        chosen, left = list[list[int]](), _CHARACTERS
        for each in Random(0).sample(texts, len(texts)):
            text = (_read(each) if isinstance(each, Path) else each)[: min(_LONGEST, left)]
            chosen.append(encode(text, bos=False, eos=False))
            left -= len(text)
        if any(chosen):
            kinds[name] = chosen
    return kinds


def _hits(stream: list[int], rows: int) -> float:
    """Return the share of the second half's look-ups whose row is among the ``rows`` that were used last."""
    used, hits, half = OrderedDict[int, None](), 0, len(stream) // 2
    for number, token in enumerate(stream):
        hits += number >= half and token in used
        used[token] = None
        used.move_to_end(token)
        if len(used) > rows:
            used.popitem(last=False)
    return hits / (len(stream) - half)


def _joined(texts: list[list[int]]) -> list[int]:
    return [token for text in texts for token in text]


def _use(name: str, kinds: dict[str, list[int]]) -> dict[str, Any]:
    """Count hits with rows that were used last, and with those that all other kinds use most."""
    stream, rows = kinds[name], {share: round(share * _VOCABULARY) for share in _SHARES}
    others = Counter(token for other, tokens in kinds.items() if other != name for token in tokens)
    chosen = {token for token, _ in others.most_common(rows[_SHARES[-1]])}
    return {
        "text": name,
        "tokens": len(stream),
        "used": len(set(stream)) / _VOCABULARY,
        "hits": {share: _hits(stream, most) for share, most in rows.items()},
        "chosen": sum(token in chosen for token in stream) / len(stream),
    }


def _last_used(stream: list[int], at: int, rows: int) -> list[int]:
    used = dict[int, None]()
    for token in reversed(stream[:at]):
        used[token] = None
        if len(used) == rows:
            break
    return list(used)


class _Decoding:
    """Steps over a text, from another place of it each round, with the rows that were used last in memory."""

    def __init__(self, models: dict[str, Any], file: Path, stream: list[int], batch: int, rows: int) -> None:
        self._prompts = {name: Prompt(model, batch) for name, model in models.items()}
        self._rows = models["disk"].get_input_embeddings().rows
        self._file, self._stream, self._batch, self._kept = file, stream, batch, rows
        self.told: list[dict[str, float]] = []
        self._places = {name: self._drawn() for name in models}

    def _drawn(self) -> Iterator[int]:
        chance = Random(self._batch)
        while True:
            yield chance.randrange(len(self._stream) // 2, len(self._stream) - self._batch * _STEPS)

    def __call__(self, name: str) -> float:
        at = next(self._places[name])
        ids = torch.tensor(self._stream[at : at + self._batch * _STEPS]).view(self._batch, _STEPS)
        if name == "device":
            return self._prompts[name].follow(ids)
        drop(self._file)
        self._rows.table[_last_used(self._stream, at, self._kept)].sum()
        held, before = resident_share(self._file), (self._rows.hits, self._rows.misses)
        seconds = self._prompts[name].follow(ids)
        hits, misses = self._rows.hits - before[0], self._rows.misses - before[1]
        self.told.append({"held": held, "hits": hits, "misses": misses})
        return seconds


def _decode(models: dict[str, Any], file: Path, stream: list[int], batch: int, share: float) -> dict[str, Any]:
    decoding = _Decoding(models, file, stream, batch, round(share * _VOCABULARY))
    seconds = in_turn({name: partial(decoding, name) for name in models}, _ROUNDS)
    return {
        "batch": batch,
        "share": share,
        "tokens": batch * _STEPS,
        "device_s": median(seconds["device"]),
        "to_device": compared(seconds["device"], seconds["disk"]),
        "table": {name: median(each[name] for each in decoding.told) for name in decoding.told[0]},
    }


def _measure() -> dict[str, Any]:
    """Count rows of each kind of text, and decode texts of all kinds with a part of the rows in memory."""
    kinds = _kinds()
    texts = [text for kind in kinds.values() for text in kind]
    mixed = _joined(Random(0).sample(texts, len(texts)))
    streams = {name: _joined(kind) for name, kind in kinds.items()}
    shape = LARGE_TABLE.changed("Llama-like, 131,072 tokens", vocab_size=_VOCABULARY, **_SMALL).of(torch.float32)
    with built(shape) as source:
        out = convert_checkpoint(str(source), source.with_name("folded")).out
        models = {placement: load(out, prefold_placement=placement) for placement in ("device", "disk")}
        read_all(models["device"])
        share_weights(models["disk"], models["device"])
        cases = [(batch, share) for batch in _BATCHES for share in _SHARES]
        return {
            "shape": shape.name,
            "table_bytes": (out / TABLE).stat().st_size,
            "uses": [_use(name, streams) for name in streams],
            "decodes": [_decode(models, out / TABLE, mixed, *case) for case in cases],
        }


def _render(found: dict[str, Any]) -> str:
    uses = [
        [
            each["text"],
            f"{each['tokens']:,}",
            f"{each['used']:.1%}",
            *(f"{hits:.2%}" for hits in each["hits"].values()),
            f"{each['chosen']:.2%}",
        ]
        for each in found["uses"]
    ]
    decodes = [
        [
            f"batch {each['batch']}, {each['share']:.0%} of the rows",
            f"{each['tokens'] / each['device_s']:,.1f}",
            "{ratio:.3f} ({low:.3f} to {high:.3f})".format(**each["to_device"]),
            f"{each['table']['held']:.1%}",
            f"{each['table']['hits']:,.0f}",
            f"{each['table']['misses']:,.0f}",
        ]
        for each in found["decodes"]
    ]
    shares = [f"hits, {share:.0%} used last" for share in _SHARES]
    kept = ["text", "tokens", "rows used", *shares, f"hits, {_SHARES[-1]:.0%} chosen"]
    head = ["", "device tokens/s", "disk / device", "table in memory before", "hits", "misses"]
    told = _DECODE.format(shape=found["shape"], size=found["table_bytes"] / 1e9, steps=_STEPS)
    return "\n".join([_USES, table(kept, uses), told, table(head, decodes), "", machine.sentence(machine.describe())])


_USES = f"""## Rows of a large vocabulary

Texts in the tokens of Mistral's Tekken, {_VOCABULARY:,} of them. **hits**: the part of the look-ups whose row is kept;
**used last**: with so many of the rows kept, those that were used last, counted over the text's second half;
**chosen**: with those that all other texts use most.
"""
_DECODE = """
Decode speed of {shape} with two layers, whose table has {size:.2f} GB, with `disk` and `device` in turn over
the same {steps} tokens of the texts, mixed. Before each turn of `disk` the system forgets the table, but for the rows
that the text used last; **hits** and **misses** are those that the look-up then counted, medians of the rounds. Ratios
are those of tokens/s, medians, and the middle half of the rounds. The goal is 0.98 with a tenth of the rows.
"""


if __name__ == "__main__":
    sys.stdout.write(_render(_measure()) + "\n")
