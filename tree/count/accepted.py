"""Speculative decoding as DeFT replays it: ``size`` one-token branches of a root that grows by what is accepted."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from prefold.common.errors import UnknownName, UsageError
from prefold.tree.count.files import read_object
from prefold.tree.count.segments import Tree

_SEED = 0


def speculative(accepted: Sequence[int], size: int, prompt: int, cap: int) -> Tree:
    """Return a tree whose root gains ``accepted[j]`` tokens after step ``j``; the prefill takes ``accepted[0]``.

    The ``size`` branches hold one token each, and are the step's queries; their order does not count. The list is cut
    where it would exceed ``cap`` tokens of output, and filled up to it as ``refill`` does.

    Raises:
        UsageError: a count is below 1, or nothing is ever accepted.
    """
    for key, value in {"size": size, "prompt": prompt, "cap": cap}.items():
        if value < 1:
            raise UsageError(f"{key} is {value}; at least 1 is needed")
    gained = refill(accepted, cap)
    steps = max(min(len(gained), cap - 1), 0)
    name = f"speculative: size {size}, prompt {prompt}, cap {cap}"
    columns = ([-1, *[0] * size], [prompt, *[1] * size], [1 - prompt, *[1] * size], [0, *[steps] * size])
    parent, tokens, birth, end = (np.array(column, np.int64) for column in columns)
    # What step t reads was gained before it; after the last step one more gain is generated, and never read.
    return Tree(name, parent, tokens, birth, end, prompt, accepted=tuple(gained[1 : steps + 1]))


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
