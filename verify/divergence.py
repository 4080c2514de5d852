"""The check of logits for a checkpoint whose rows are stored in fewer bytes.

Its logits cannot equal the source's, so their difference is compared with an accepted one: that of running the source
itself in bfloat16 or in float32.
"""

from dataclasses import asdict
from math import isfinite
from typing import Any

import torch

from prefold.verify.checks import Outcome
from prefold.verify.compare import Distance, distance
from prefold.verify.outputs import Outputs, Triple, same_passes, what_is_broken

# Of a mean over all positions: what is let pass whatever the source's own, and how many times the source's own.
_LEAST, _FACTOR = 1e-4, 4


def other_width(dtype: str) -> str:
    """Name the type that a source of ``dtype`` is run in once more, to measure how much that changes."""
    return "float32" if dtype in ("bfloat16", "float16") else "bfloat16"


def check_divergence(
    source: Outputs, folded: Outputs, other: Outputs | None, dtype: str, *, has_logits: bool = True
) -> Outcome:
    """Compare both models over prefill, padded batch, random tokens, text, and cached steps while they agree.

    ``other`` are the source's outputs in ``other_width``; None where it does not run in that. The mean divergence from
    the source may be four times the source's own between the two types, or 1e-4, whichever is more. Hidden states
    have no divergence: where there are no logits, the same holds for their NMSE.
    """
    parts = same_passes(source, folded, other or source)
    for one, two, _ in parts.values():
        if broken := what_is_broken(one, two):
            return Outcome(False, broken, {"exact": False}, [broken])
    one, two, three = (torch.cat(each) for each in zip(*parts.values(), strict=True))
    apart, own = distance(one, two), distance(one, three) if other else None
    judged = "kl_mean" if has_logits else "nmse"
    limit = _limit(getattr(own, judged) if own else 0)
    figures = _by_pass(parts) | {"overall": asdict(apart), "noise_floor": asdict(own) if own else None}
    figures |= {"positions": len(one), "judged_by": judged, "limit": limit}
    measured = f"{_words(apart)}, over {len(one):,} positions; the source itself in {other_width(dtype)}: {_words(own)}"
    passed = getattr(apart, judged) <= limit
    least = f"{'mean KL' if has_logits else 'NMSE'} {getattr(apart, judged):.3g} of at most {limit:.3g}"
    return Outcome(passed, f"{least}: {measured}", figures, [] if passed else [f"{least}: {measured}"])


def _words(far: Distance | None) -> str:
    return f"{far}, KL p99 {far.kl_p99:.3g}" if far else "does not run"


def _limit(own: float) -> float:
    return max(_LEAST, _FACTOR * own) if isfinite(own) else _LEAST


def _by_pass(parts: dict[str, Triple]) -> dict[str, Any]:
    """Return the distance of the folded model from its source in every pass, and whether all are zero."""
    apart = {name: distance(one, two) for name, (one, two, _) in parts.items()}
    steps = {"steps_compared": len(parts["step"][0])} if "step" in parts else {}
    exact = {"exact": all(far.is_zero for far in apart.values())}
    return {name: asdict(far) for name, far in apart.items()} | exact | steps
