"""How far two sets of logits are apart."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Distance:
    """How far logits are from a reference.

    Attributes:
        max_abs: largest absolute difference.
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

    @property
    def is_zero(self) -> bool:
        """Whether the two are equal bit for bit."""
        return self.max_abs == 0


def distance(reference: torch.Tensor, other: torch.Tensor) -> Distance:
    """Measure ``[positions, vocab]`` logits against reference logits.

    Another shape is infinitely far, and so is what is not finite, on either side: it cannot be compared.
    """
    one, two = reference.double(), other.double()
    if one.shape != two.shape or not (one.isfinite().all() and two.isfinite().all()):
        return Distance(torch.inf, torch.inf, torch.inf, torch.inf, 0.0)
    expected, got = one.log_softmax(-1), two.log_softmax(-1)
    divergence = (expected.exp() * (expected - got)).sum(-1).clamp(min=0)
    error, size = (one - two).square().sum(), one.square().sum()
    return Distance(
        max_abs=float((one - two).abs().max()),
        nmse=float(error / size) if error else 0.0,
        kl_mean=float(divergence.mean()),
        kl_p99=float(divergence.quantile(0.99)),
        top1_agreement=float(one.argmax(-1).eq(two.argmax(-1)).double().mean()),
    )
