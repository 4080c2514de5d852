"""Distances between two sets of logits."""

from dataclasses import dataclass

import torch

# Positions that are compared in float64 at a time: those of a large vocabulary fill many times their memory there.
_AT_ONCE = 64


@dataclass(frozen=True)
class Distance:
    """Differences of logits from a reference.

    Attributes:
        nmse: squared error over the reference's squared size.
        kl_mean: mean Kullback-Leibler divergence from the reference, in nats per position.
        kl_p99: its 99th percentile over positions.
        top1_agreement: part of the positions whose best token is the same.
    """

    max_abs: float
    nmse: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float

    def __str__(self) -> str:
        error = f"max |Δ| {self.max_abs:.3g}, NMSE {self.nmse:.3g}, mean KL {self.kl_mean:.3g}"
        return f"{error}, top-1 {self.top1_agreement:.1%}"

    @property
    def is_zero(self) -> bool:
        """Whether the two are equal bit for bit."""
        return self.max_abs == 0


def distance(reference: torch.Tensor, other: torch.Tensor) -> Distance:
    """Measure ``[positions, vocab]`` logits against reference logits.

    Another shape is infinitely far, and so is what is not finite, on either side: it cannot be compared.
    """
    if reference.shape != other.shape or not (reference.isfinite().all() and other.isfinite().all()):
        return Distance(torch.inf, torch.inf, torch.inf, torch.inf, 0.0)
    pairs = zip(reference.split(_AT_ONCE), other.split(_AT_ONCE), strict=True)
    largest, error, size, divergence, same = zip(
        *[_apart(one.double(), two.double()) for one, two in pairs], strict=True
    )
    return Distance(
        max_abs=max(largest),
        nmse=(sum(error) / sum(size) if sum(size) else torch.inf) if sum(error) else 0.0,
        kl_mean=float(torch.cat(divergence).mean()),
        kl_p99=float(torch.cat(divergence).quantile(0.99)),
        top1_agreement=float(torch.cat(same).double().mean()),
    )


def _apart(one: torch.Tensor, two: torch.Tensor) -> tuple[float, float, float, torch.Tensor, torch.Tensor]:
    """Return the largest difference, the squared error and size, and by position divergence and agreement."""
    expected, got = one.log_softmax(-1), two.log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1).clamp(min=0)
    error, size = (one - two).square().sum(), one.square().sum()
    same = one.argmax(-1).eq(two.argmax(-1))
    return float((one - two).abs().max()), float(error), float(size), divergence, same
