"""One forward pass: a prefill, or one step of decoding."""

from dataclasses import dataclass
from typing import Literal

from prefold.common.errors import UsageError

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
MOST = 1_000_000_000
BYTES: dict[str, float] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5, "fp4": 0.5, "mxfp4": 0.5}
# Bytes of scales for a weight: 16 bits and a zero for 128 of int4 (GPTQ, AWQ), 8 bits for 16 (NVFP4) or 32 (MXFP4),
# and 32 bits for a block of 128 x 128 of fp8. Those of int8 are one for a row or a column.
SCALES: dict[str, float] = {"int4": (2 + 0.5) / 128, "fp4": 1 / 16, "mxfp4": 1 / 32, "fp8": 4 / 128**2}
# Types that engines multiply as they are stored, where a chip can; all others are widened first.
MULTIPLIED = {"fp8": "fp8", "fp4": "fp4", "mxfp4": "fp4"}
_UNQUANTIZED = "bf16"


def bytes_of(dtype: str) -> float:
    """Bytes of one number of a type; ``UsageError`` where there is no such type."""
    if dtype not in BYTES:
        raise UsageError(unknown_type(dtype))
    return BYTES[dtype]


def layer_weight_bytes(dtype: str) -> float:
    """Bytes of one weight of a layer, its share of a scale with it."""
    return bytes_of(dtype) + SCALES.get(dtype, 0)


def head_weight_bytes(dtype: str) -> float:
    """Bytes of one weight of embedding and head, which stay in 16 bits where layers are quantized."""
    return max(bytes_of(dtype), bytes_of(_UNQUANTIZED))


def unknown_type(dtype: str) -> str:
    """Return the message for an unknown type of numbers."""
    return f"{dtype}: no such type of numbers; there are {', '.join(BYTES)}"


@dataclass(frozen=True)
class Workload:
    """One forward pass.

    Attributes:
        batch: B in the paper, sequences.
        context: tokens of each sequence: of its prompt, or cached for it in a decode step.
        weights: type that weights are stored in; for most, the matmuls stay in ``activations`` (section 3.6).
        kv: type of the KV cache.
        activations: type of what is multiplied and sent between chips.
        branches: sequences that continue one prefix; 1 where each has a context of its own.
        shared_prefix: tokens of the context that ``branches`` sequences have in common.
        shares_reads: the shared prefix is kept once for its branches, and read once for all of them.
        head: type of embedding and head; None for that of the weights, or 16 bits where these are quantized.
        drafted: tokens of each sequence that a decode step checks beside its own.
        memory_share: of a chip's memory that may be used; a runtime, its graphs and fragments take the rest.
        all_logits: the head multiplies every token of a prompt, as the paper counts it, and not the last one alone.
    """

    phase: Phase
    batch: int
    context: int
    weights: str = "bf16"
    kv: str = "bf16"
    activations: str = "bf16"
    branches: int = 1
    shared_prefix: int = 0
    shares_reads: bool = False
    head: str | None = None
    all_logits: bool = False
    drafted: int = 0
    memory_share: float = 0.9

    def __post_init__(self) -> None:
        """Raise ``UsageError`` with a line for each fault."""
        wrong = [text for text, holds in self._faults() if holds]
        if wrong:
            raise UsageError("\n".join(wrong))

    def _faults(self) -> list[tuple[str, bool]]:
        prefix, branches = self.shared_prefix, self.branches
        return [
            (f"{self.phase}: no such phase; there are {', '.join(PHASES)}", self.phase not in PHASES),
            (f"batch {self.batch}: at least one sequence", self.batch < 1),
            (f"context {self.context}: at least one token", self.context < 1),
            (f"batch: at most {MOST:,} sequences", self.batch > MOST),
            (f"context: at most {MOST:,} tokens", self.context > MOST),
            (f"{branches} branches: at least one", branches < 1),
            (f"batch {self.batch} is not a multiple of {branches} branches", self.batch % max(1, branches) > 0),
            (f"shared prefix {prefix}: no branches share it: it needs two and more", prefix > 0 and branches == 1),
            (
                f"shared prefix {prefix} is not within the context {self.context}",
                not 0 <= prefix <= max(0, self.context),
            ),
            (f"memory share {self.memory_share}: above 0 and at most 1", not 0 < self.memory_share <= 1),
            *((unknown_type(each), each not in BYTES) for each in self._types),
        ]

    @property
    def _types(self) -> list[str]:
        return [self.weights, self.kv, self.activations, *([self.head] if self.head else [])]

    @property
    def compute(self) -> str:
        """Type that the matmuls of layers run in: that of the weights where engines multiply it, as of fp8."""
        return MULTIPLIED.get(self.weights, self.activations)

    @property
    def layer_weight(self) -> float:
        """Bytes of one weight of a layer, its share of a scale with it."""
        return layer_weight_bytes(self.weights)

    @property
    def head_weight(self) -> float:
        """Bytes of one weight of embedding and head."""
        return bytes_of(self.head) if self.head else head_weight_bytes(self.weights)

    @property
    def tokens_per_sequence(self) -> int:
        """Tokens of one sequence that the pass works on: L in the paper, 1 in a decode step without a draft."""
        return self.context if self.phase == "prefill" else 1 + self.drafted

    @property
    def tokens(self) -> int:
        """Tokens that the pass works on: BL in the paper. A prefill that shares prefixes works on each of them once."""
        repeated = (self.batch - self.prefixes) * self.shared_prefix
        saved = repeated if self.phase == "prefill" and self.shares_reads else 0
        return self.batch * self.tokens_per_sequence - saved

    @property
    def logits(self) -> int:
        """Tokens that the head multiplies."""
        return self.tokens if self.all_logits or self.drafted else self.batch

    @property
    def positions(self) -> int:
        """Tokens that a sequence has after the pass."""
        return self.context + (1 if self.phase == "decode" else 0)

    def keys_per_token(self, window: int | None = None) -> float:
        """Return the keys that a token attends to, on average, within a window; in a prefill those up to its own."""
        seen = self.seen(window)
        if self.phase == "decode":
            return self.context + 1 if window is None else min(self.context + 1, window)
        return (seen * (seen + 1) / 2 + (self.context - seen) * seen) / self.context

    def seen(self, window: int | None = None) -> int:
        """Return the tokens of a sequence that layers with a window keep."""
        return self.context if window is None else min(self.context, window)

    @property
    def prefixes(self) -> int:
        """Shared prefixes."""
        return self.batch // self.branches
