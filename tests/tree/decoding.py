"""Models that decode trees by the Triton kernels, to be run where these are interpreted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tests.tree.trees import Grove, model_of


@contextmanager
def _by_kernels() -> Iterator[list[int]]:
    """Let steps of one token be attended to by the kernels; yields how many rows each call had."""
    from prefold.tree.cache import attention
    from prefold.tree.cache.triton_attention import attend_decoding

    calls: list[int] = []
    grouped = attention._attend_part

    def attend_part(part: Any, *args: Any) -> torch.Tensor:
        if part.new > 1:
            return grouped(part, *args)
        calls.append(len(part.rows))
        return attend_decoding(part, *args)

    attention._attend_part = attend_part
    try:
        yield calls
    finally:
        attention._attend_part = grouped


def _grown(kind: str, steps: Sequence[tuple[list[int], int]], options: dict[str, Any]) -> list[int]:
    """Grow a grove, which has to be exact; returns the bytes that were read in every pass."""
    grove = Grove(model_of(kind), seed=3, **options)
    grove.plant([9, 4])
    for rows, new in steps:
        grove.choose(rows)
        grove.grow(new)
    grove.assert_exact()
    return grove.cache.reads


def decode_by_kernels(
    kind: str, steps: Sequence[tuple[list[int], int]], options: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """Return the bytes that both back ends read in every pass, and the rows of the kernels' calls."""
    with _by_kernels() as calls:
        found = _grown(kind, steps, options)
    return found, _grown(kind, steps, options), calls
