"""The check that text becomes the same tokens, by the same classes and pipelines."""

from collections.abc import Iterator
from typing import Any

from prefold.verify.checks import Outcome
from prefold.verify.structure import problem_count

_SHOWN = 3  # texts that are named


def check_text(source: dict[str, Any], folded: dict[str, Any]) -> Outcome:
    """Compare the measurements of the same texts: all must be equal."""
    problems = list(_differences(source, folded))
    figures = {name: source[name] for name in ("classes", "tasks")} | {"texts": len(_texts(source))}
    return Outcome(not problems, problem_count(problems) if problems else _summary(source), figures, problems)


def _summary(source: dict[str, Any]) -> str:
    tokenizer = source["classes"]["AutoTokenizer"]
    if not _texts(source):
        return f"neither has a tokenizer that loads here ({tokenizer})"
    chat = ", and the chat template renders alike" if source.get("chat") else ""
    return f"{tokenizer}: ids and decoded text of {len(_texts(source))} texts equal{chat}"


def _texts(measured: dict[str, Any]) -> dict[str, Any]:
    texts = measured.get("texts")
    return texts if isinstance(texts, dict) else {}


def _differences(source: dict[str, Any], folded: dict[str, Any]) -> Iterator[str]:
    for name in sorted(source.keys() | folded.keys()):
        one, other = source.get(name), folded.get(name)
        if name == "texts":
            yield from _different_texts(_texts(source), _texts(folded))
        if one != other and not (name == "texts" and _texts(source) and _texts(folded)):
            yield f"{name}: {_short(other)}, the source's {_short(one)}"


def _different_texts(source: dict[str, Any], folded: dict[str, Any]) -> Iterator[str]:
    apart = [text for text in source if text in folded and source[text] != folded[text]]
    for text in apart[:_SHOWN]:
        yield f"{text!r} becomes {_short(folded[text])}, the source's {_short(source[text])}"
    if len(apart) > _SHOWN:
        yield f"{len(apart) - _SHOWN} other texts differ, too"


def _short(value: Any) -> str:
    return f"{value!r:.120}"
