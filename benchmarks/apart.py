"""Run a function for many keys, each in a process of its own, which may hang or die without ending the run."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


@dataclass(frozen=True)
class _Job:
    key: Any
    process: BaseProcess
    end: float


def answers(
    function: Callable[[Any], Any], keys: Iterable[Any], *, seconds: float, workers: int = 1
) -> Iterator[tuple[Any, Any]]:
    """Yield every key with what the function says of it, as they come; a text tells why one has no answer."""
    waiting, jobs = list(keys)[::-1], dict[Connection, _Job]()
    while waiting or jobs:
        while waiting and len(jobs) < workers:
            receiver, job = _started(function, waiting.pop(), seconds)
            jobs[receiver] = job
        for receiver in _ended(jobs):
            job = jobs.pop(receiver)
            yield job.key, _answer(receiver, job, seconds)


def _started(function: Callable[[Any], Any], key: Any, seconds: float) -> tuple[Connection, _Job]:
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import transformers every time
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, key, sender))
    process.start()
    sender.close()
    return receiver, _Job(key, process, time.monotonic() + seconds)


def _send(function: Callable[[Any], Any], key: Any, sender: Connection) -> None:
    sender.send(function(key))


def _ended(jobs: dict[Connection, _Job]) -> list[Connection]:
    """Wait for an answer, a death, or the end of a job's time."""
    left = min(job.end for job in jobs.values()) - time.monotonic()
    known: list[Any] = wait(list(jobs), max(left, 0))
    return known or [receiver for receiver, job in jobs.items() if job.end <= time.monotonic()]


def _answer(receiver: Connection, job: _Job, seconds: float) -> Any:
    try:
        return receiver.recv() if receiver.poll() else f"did not end within {seconds:.0f} seconds"
    except EOFError:
        return "the process died"
    finally:
        job.process.kill()
        job.process.join()
