"""What serving takes: time to the first token, and from token to token, while prompts of others come in between.

In steady state a request begins whenever one ends. So a step of ``n`` sequences, each of which brings a prompt and ends
after ``new_tokens`` steps, carries ``(n - 1) / new_tokens`` prefills of the others on average:

    tpot = kernels * (decode + (n - 1) / new_tokens * prefill) + step
    ttft = accept + (kernels * prefill + step) * (1 + wait * n)

``decode`` and ``prefill`` are the kernels' seconds of a step and of one prompt; all else is of the engine
(``calibration.Engine``). Requests that do not fit wait for others to end: then ``n`` is the number that fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from prefold.common.errors import UnknownName, UsageError
from prefold.plan.calibration import Engine, Kernels, engines
from prefold.plan.cost.case import Case
from prefold.plan.cost.memory import memory_of
from prefold.plan.estimate import Estimate
from prefold.plan.model.shape import Shape

DEFAULT_ENGINE = "vllm"


@dataclass(frozen=True)
class Service:
    """Requests of one kind; ``new_tokens`` are generated for each. A step's batch is their number at a time."""

    prompt: int
    new_tokens: int
    engine: str = DEFAULT_ENGINE

    def __post_init__(self) -> None:
        """Raise ``UsageError`` with a line for each fault, ``UnknownName`` for an engine that is not known."""
        if wrong := list(self._faults()):
            raise UsageError("\n".join(wrong))
        if self.engine not in engines():
            raise UnknownName("engine", self.engine, list(engines()))

    def _faults(self) -> Iterator[str]:
        for name in ("prompt", "new_tokens"):
            if (value := getattr(self, name)) < 1:
                yield f"{name.replace('_', ' ')} {value}: at least one"

    @property
    def context(self) -> int:
        """Tokens that a sequence has on average while it decodes."""
        return self.prompt + self.new_tokens // 2

    @property
    def positions(self) -> int:
        """Tokens of a sequence when it ends."""
        return self.prompt + self.new_tokens


@dataclass(frozen=True)
class Serving:
    """The figures of a service; those that need a calibration are None without one.

    Attributes:
        ttft_seconds: to the first token, the wait for room included.
        tpot_seconds: from token to token.
        ideal_tpot_seconds: at the chip's full rates if all overlaps; no engine is faster.
        output_tokens_per_second: of all requests together.
        tokens_per_second_per_user: from token to token.
        fits: all of them fit at once.
        concurrency_that_fits: most that fit at once.
    """

    engine: str
    ttft_seconds: float | None
    tpot_seconds: float | None
    ideal_tpot_seconds: float
    output_tokens_per_second: float | None
    tokens_per_second_per_user: float | None
    fits: bool
    concurrency_that_fits: int
    calibration: str
    uncalibrated: str


def require_positions(shape: Shape, service: Service) -> None:
    """Raise ``UsageError`` for requests that the model has too few positions for."""
    if had := shape.too_few_positions(service.positions):
        raise UsageError(f"{had}, and a request needs {service.positions:,}: its prompt and its new tokens")


def serve(decode: Estimate, service: Service) -> Serving:
    """Return the figures of a service of as many requests as a decode step has sequences.

    It is served under tensor parallelism, whatever the estimate's layout is.
    """
    decode = replace(decode, case=replace(decode.case, layout="1d-ws", sharding="head"))
    asked, fitting = decode.case.workload.batch, concurrency_that_fits(decode.case)
    running = min(asked, fitting)
    step, prompt = _passes(decode, service, max(1, running))
    tpot = ttft = output = None
    unknown = _unknown(step, prompt)
    if running and not unknown and step.calibrated_seconds and prompt.calibrated_seconds:
        engine = engines()[service.engine]
        tpot = tpot_of(engine, step.calibrated_seconds, prompt.calibrated_seconds, prefills(service, running))
        ttft = ttft_of(engine, prompt.calibrated_seconds, running)
        total = ttft + service.new_tokens * tpot
        output = running * service.new_tokens / total
        ttft += (asked / running - 1) * total
    return Serving(
        engine=service.engine,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        ideal_tpot_seconds=_ideal(step, prompt, prefills(service, max(1, running))),
        output_tokens_per_second=output,
        tokens_per_second_per_user=1 / tpot if tpot else None,
        fits=asked <= fitting,
        concurrency_that_fits=fitting,
        calibration=step.calibration.source if tpot and step.calibration else "",
        uncalibrated=unknown,
    )


def _unknown(step: Estimate, prompt: Estimate) -> str:
    """Return why there are no times of serving; empty where there are."""
    reasons = step.uncalibrated or prompt.uncalibrated
    if reasons or isinstance(step.calibration, Kernels):
        return reasons
    return f"no kernels of {step.case.chip.name} were measured, to which engines are fitted"


def prefills(service: Service, running: int) -> float:
    """Return the prompts that a step carries on average: those of the other sequences, once in ``new_tokens`` steps."""
    return (running - 1) / service.new_tokens


def _passes(decode: Estimate, service: Service, running: int) -> tuple[Estimate, Estimate]:
    """Return a decode step of so many sequences, and the prefill of one prompt."""
    case = decode.case
    step = replace(case.workload, batch=running, branches=1, shared_prefix=0)
    prompt = replace(step, phase="prefill", batch=1, context=service.prompt)
    return tuple(Estimate(replace(case, workload=each), decode.calibrations) for each in (step, prompt))  # type: ignore[return-value]


def tpot_of(engine: Engine, decode: float, prefill: float, carried: float) -> float:
    """Return the seconds from token to token; each step carries so many prefills."""
    return engine.kernels * (decode + carried * prefill) + engine.step


def ttft_of(engine: Engine, prefill: float, running: int) -> float:
    """Return the seconds to a first token beside ``running`` sequences."""
    return engine.accept + (engine.kernels * prefill + engine.step) * (1 + engine.wait * running)


def _ideal(step: Estimate, prompt: Estimate, carried: float) -> float:
    """Return the seconds that no engine beats: a prompt may share a step's reads of weights, and no operations."""
    each, more = step.terms, prompt.terms
    return max(
        each.least_memory,
        each.arithmetic + carried * more.arithmetic,
        each.communication + carried * more.communication,
    )


def kv_type(engine: str, weights: str) -> str:
    """Return the type of the KV cache where none is asked for: TensorRT-LLM keeps 8 bits beside weights of as few."""
    return "fp8" if engine == "tensorrt-llm" and weights in ("fp8", "fp4") else "bf16"


def concurrency_that_fits(case: Case) -> int:
    """Return the most sequences of a decode step that fit beside the weights; 0 where not one does."""
    one = memory_of(replace(case, workload=replace(case.workload, batch=1, branches=1, shared_prefix=0)))
    each = one.kv + one.state
    return max(0, int((one.available - (one.total - each)) / each))
