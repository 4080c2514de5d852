"""Trees of the usual ways to decode many branches of one prompt."""

from collections.abc import Sequence
from random import Random

from prefold.common.errors import UsageError
from prefold.tree.count.segments import Tree, make_tree


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
    random = Random(seed)  # noqa: S311 (no secret)
    parent, birth, end = [-1], [1 - prompt], [0]

    def begin(above: int, step: int) -> int:
        parent.append(above)
        birth.append(step)
        end.append(steps)
        return len(parent) - 1

    live = [begin(0, 1) for _ in range(beams)]
    for step in range(every, steps, every):
        chosen = [random.choice(live) for _ in live]
        live_next = []
        for segment in live:
            remaining_owners = chosen.count(segment)
            end[segment] = steps if remaining_owners == 1 else step
            live_next += (
                [segment] if remaining_owners == 1 else [begin(segment, step + 1) for _ in range(remaining_owners)]
            )
        live = live_next
    tokens = [last - first + 1 for first, last in zip(birth, end, strict=True)]
    name = f"beam: prompt {prompt}, beams {beams}, steps {steps}, every {every}, seed {seed}"
    return make_tree(name, parent, tokens, birth, end)


def _require(**counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise UsageError(f"{key} is {value}; at least 1 is needed")


def _fan(name: str, prompt: int, lengths: Sequence[int]) -> Tree:
    ones = len(lengths)
    return make_tree(name, [-1, *[0] * ones], [prompt, *lengths], [1 - prompt, *[1] * ones], [0, *lengths])
