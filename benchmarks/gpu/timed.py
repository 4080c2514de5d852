"""Calls in a CUDA graph, and their time; on a CPU, where the script is tested, the calls themselves."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.timing import in_turn

_WARM, _ROUNDS, _COPY = 3, 9, 1 << 30
Call = Callable[[], object]
Found = dict[str, list[dict[str, Any]]]  # the figures of each part


def captured(call: Call, device: str) -> Call:
    """Return a replay of a call, captured in a CUDA graph so that launches cost as little as they can.

    Raises:
        RuntimeError: the call waits for the device, or does something else that cannot be captured.
    """
    if device == "cpu":
        return call
    for _ in range(_WARM):  # compiles
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def attempt(make: Callable[[], Call]) -> Call | str:
    """Make something to be timed, or return the reason why it is not there: a back end may not know a new GPU."""
    try:
        return make()
    except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def seconds_of(call: Call, device: str, repeats: int) -> float:
    """Return the seconds of one call, from the mean of several."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def timed(
    made: dict[str, Call | str], device: str, *, quick: bool, repeats: int = 20
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time calls in turn; returns seconds for each round by name, and the reasons of those that are not there."""
    rounds, repeats = (2, 1) if quick else (_ROUNDS, repeats)
    failed = {name: each for name, each in made.items() if isinstance(each, str)}
    calls = {
        name: partial(seconds_of, each, device, repeats) for name, each in made.items() if not isinstance(each, str)
    }
    return in_turn(calls, rounds) if calls else {}, failed


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each call's seconds."""
    return {name: median(each) for name, each in times.items()}


def copy_bandwidth(device: str, size: int = _COPY) -> float:
    """Return bytes that a copy within the memory moves in a second, read and written, from the median of nine."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = captured(lambda: target.copy_(source), device)
    return 2 * size / median(seconds_of(copy, device, 10) for _ in range(9))
