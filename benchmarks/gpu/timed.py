"""Calls in a CUDA graph, and their time; on a CPU, where the script is tested, the calls themselves."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.timing import in_turn

_WARM, _COPY = 3, 1 << 30
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


def times_of(calls: dict[str, Call], device: str, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of calls that are timed in turn, a figure for each round."""
    each = {name: lambda call=call: seconds_of(call, device, repeats) for name, call in calls.items()}
    return in_turn(each, rounds)


def copy_bandwidth(device: str, size: int = _COPY) -> float:
    """Return bytes that a copy within the memory moves in a second, read and written, from the median of nine."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = captured(lambda: target.copy_(source), device)
    return 2 * size / median(seconds_of(copy, device, 10) for _ in range(9))
