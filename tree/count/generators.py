"""Trees of the usual ways to decode many branches, by the names and settings of the command line."""

from collections import Counter
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from prefold.common.errors import UnknownName, UsageError
from prefold.tree.count.files import Forest, read_object, read_trees
from prefold.tree.count.segments import MOST_STEPS, Tree, make_tree

_SEED = 0
_MOST_SEGMENTS = 1_000_000
_MOST = {
    "steps": MOST_STEPS,
    "cap": MOST_STEPS,
    "prompt": 1_000_000_000,
    "tokens": 1_000_000_000,
    **dict.fromkeys(("branches", "beams", "size", "nodes"), _MOST_SEGMENTS),
}


def few_shot(prompt: int, branches: int, steps: int) -> Tree:
    """Return ``branches`` that continue one prompt of so many tokens and decode for ``steps`` each."""
    _require(prompt=prompt, branches=branches, steps=steps)
    return _fan(f"few-shot: prompt {prompt}, branches {branches}, steps {steps}", prompt, [steps] * branches)


def n_best(prompt: int, branches: int, steps: int, shortest: int | None = None) -> Tree:
    """Return samples of one prompt that end one after another: evenly spread from ``shortest`` to ``steps`` tokens.

    Half of ``steps``, rounded up, is the shortest where none is given.
    """
    least = (steps + 1) // 2 if shortest is None else shortest
    _require(prompt=prompt, branches=branches, steps=steps, shortest=least)
    if least > steps:
        raise UsageError(f"n-best: shortest is {least}, above steps, {steps}")
    apart = max(branches - 1, 1)
    lengths = [steps - (steps - least) * branch // apart for branch in range(branches)]
    return _fan(f"n-best: prompt {prompt}, branches {branches}, steps {steps}, shortest {least}", prompt, lengths)


def beam(prompt: int, beams: int, steps: int, every: int = 1, seed: int = 0) -> Tree:
    """Return a beam search that chooses its beams anew after ``every`` steps, each among all of them alike.

    A beam with one successor stays one segment; with several it ends and each gets a segment of its own; without any it
    is pruned. Python's Mersenne Twister, seeded, chooses.
    """
    _require(prompt=prompt, beams=beams, steps=steps, every=every)
    _require_choices(beams, -(-steps // every))
    random = Random(seed)  # noqa: S311 (no secret)
    parent, birth, end = [-1], [1 - prompt], [0]

    def begin(above: int, step: int) -> int:
        parent.append(above)
        birth.append(step)
        end.append(steps)
        return len(parent) - 1

    live = [begin(0, 1) for _ in range(beams)]
    for step in range(every, steps, every):
        chosen = Counter(random.choice(live) for _ in live)
        live_next = []
        for segment in live:
            successors = chosen[segment]
            end[segment] = steps if successors == 1 else step
            live_next += [segment] if successors == 1 else [begin(segment, step + 1) for _ in range(successors)]
        live = live_next
    tokens = [last - first + 1 for first, last in zip(birth, end, strict=True)]
    name = f"beam: prompt {prompt}, beams {beams}, steps {steps}, every {every}, seed {seed}"
    return make_tree(name, parent, tokens, birth, end)


def speculative(accepted: Sequence[int], size: int, prompt: int, cap: int) -> Tree:
    """Return speculative decoding as DeFT replays it: the root gains ``accepted[j]`` tokens after step ``j``.

    The prefill takes ``accepted[0]``. The ``size`` branches hold one token each, and are the step's queries in any
    order. The list is cut where it would exceed ``cap`` tokens of output, and filled up to it as ``refill`` does.

    Raises:
        UsageError: a count is below 1, or nothing is ever accepted.
    """
    _require(size=size, prompt=prompt, cap=cap)
    gained = refill(accepted, cap)
    steps = max(min(len(gained), cap - 1), 0)
    name = f"speculative: size {size}, prompt {prompt}, cap {cap}"
    columns = ([-1, *[0] * size], [prompt, *[1] * size], [1 - prompt, *[1] * size], [0, *[steps] * size])
    parent, tokens, birth, end = (np.array(column, np.int64) for column in columns)
    # What step t reads was gained before it; after the last step one more gain is generated, and never read.
    return Tree(name, parent, tokens, birth, end, prompt, accepted=tuple(gained[1 : steps + 1]))


def levels(nodes: Sequence[int], tokens: Sequence[int]) -> Tree:
    """Return one step over a tree of levels: ``nodes`` and the tokens of each, level by level; every leaf is a query.

    Child ``j`` of a level of n nodes continues node ``j * parents // n`` of the level above. Several nodes in the first
    level are several roots, below a prompt of no tokens.
    """
    if len(nodes) != len(tokens) or not nodes:
        raise UsageError(f"levels: {len(nodes)} numbers of nodes and {len(tokens)} of tokens: one of each for a level")
    for node, token in zip(nodes, tokens, strict=True):
        _require(nodes=node, tokens=token)
    _require(nodes=sum(nodes))
    counts, sizes = ([*nodes], [*tokens]) if nodes[0] == 1 else ([1, *nodes], [0, *tokens])
    first = np.cumsum([0, *counts])
    above = [
        first[level - 1] + np.arange(count) * counts[level - 1] // count for level, count in enumerate(counts[1:], 1)
    ]
    parent, held = np.concatenate([[-1], *above]).astype(np.int64), np.repeat(np.array(sizes, np.int64), counts)
    end = np.isin(np.arange(len(parent)), parent, invert=True).astype(np.int64)  # a leaf is decoded at step 1
    name = f"levels: nodes {'/'.join(map(str, nodes))}, tokens {'/'.join(map(str, tokens))}"
    return Tree(name, parent, held, end - held + 1, end, sizes[0])


def refill(accepted: Sequence[int], cap: int) -> list[int]:
    """Return accepted lengths that add up to ``cap``.

    Those given come first, up to where they would exceed it; then numbers between their least and their greatest from
    Python's Mersenne Twister, seeded with 0; the last is clipped.
    """
    if not accepted or min(accepted) < 0 or max(accepted) < 1:
        raise UsageError("accepted lengths are whole numbers from 0, and one at least is above it")
    total, kept = 0, []
    for length in accepted:
        if total + length > cap:
            break
        kept.append(length)
        total += length
    random = Random(_SEED)  # noqa: S311 (the published runs drew from it)
    while total < cap:
        kept.append(min(random.randint(min(accepted), max(accepted)), cap - total))
        total += kept[-1]
    return kept


def read_accepted(file: Path, dataset: str = "APPS", index: int = 0) -> list[int]:
    """Return a list of accepted lengths of ``speculative.json``, a digit for each step; ``UsageError`` without."""
    found = read_object(file).get("accept_lengths")
    if not isinstance(found, dict):
        raise UsageError(f"{file}: no accept_lengths")
    if dataset not in found:
        raise UnknownName(f"dataset in {file}", dataset, list(found))
    lists = found[dataset].get("lists") if isinstance(found[dataset], dict) else None
    if not isinstance(lists, list) or not 0 <= index < len(lists):
        raise UsageError(f"{file}: {dataset} has no list {index}")
    if not isinstance(lists[index], str) or not lists[index].isdecimal():
        raise UsageError(f"{file}: list {index} of {dataset} is not a string of digits")
    return [int(digit) for digit in lists[index]]


def _require(**counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise UsageError(f"{key} is {value}; at least 1 is needed")
        if value > _MOST.get(key, value):
            raise UsageError(f"{key} is {value:,}; at most {_MOST[key]:,} are counted")


def _require_choices(beams: int, times: int) -> None:
    if beams * times > _MOST_SEGMENTS:
        raise UsageError(f"{beams:,} beams, chosen {times:,} times; at most {_MOST_SEGMENTS:,} choices are counted")


def _fan(name: str, prompt: int, lengths: Sequence[int]) -> Tree:
    ones = len(lengths)
    return make_tree(name, [-1, *[0] * ones], [prompt, *lengths], [1 - prompt, *[1] * ones], [0, *lengths])


def _replayed(file: Path, size: int, prompt: int, cap: int, dataset: str = "APPS", index: int = 0) -> Tree:
    return speculative(read_accepted(file, dataset, index), size, prompt, cap)


_GENERATORS: dict[str, Callable[..., Tree]] = {
    "few-shot": few_shot,
    "n-best": n_best,
    "beam": beam,
    "speculative": _replayed,
    "levels": levels,
}
_Setting = int | str | Path | tuple[int, ...]


def _value(name: str, key: str, text: str) -> _Setting:
    if key in ("file", "dataset"):
        return Path(text) if key == "file" else text
    try:
        return tuple(int(each) for each in text.split("/")) if name == "levels" else int(text)
    except ValueError as error:
        kind = "whole numbers, as 1/4/16" if name == "levels" else "a whole number"
        raise UsageError(f"{name}: {key}={text} is not {kind}") from error


def open_trees(source: str, *, limit: int | None = None) -> Forest:
    """Return the first ``limit`` complete trees of a file, or the tree of a generator, ``NAME:key=value,...``.

    Raises:
        UsageError: there is neither, or no tree in it.
    """
    name, colon, settings = source.partition(":")
    if name in _GENERATORS:
        tree = _GENERATORS[name](**_arguments(name, settings))
        return Forest(tree.name, (tree,))
    if not Path(source).exists() and (colon or not Path(source).suffix):
        raise UnknownName("file or generator", name, list(_GENERATORS))
    return read_trees(Path(source), limit=limit)


def _arguments(name: str, settings: str) -> dict[str, Any]:
    parameters = signature(_GENERATORS[name]).parameters
    given: dict[str, _Setting] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in parameters:
            raise UsageError(f"{name}: no setting {key!r}; there are {', '.join(parameters)}")
        if key in given:
            raise UsageError(f"{name}: {key} is given twice")
        given[key] = _value(name, key, value)
    missing = [key for key, each in parameters.items() if each.default is Parameter.empty and key not in given]
    if missing:
        raise UsageError(f"{name}: without {', '.join(missing)}; as {name}:{','.join(f'{key}=...' for key in missing)}")
    return given
