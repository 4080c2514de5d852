"""What two models say to the same checks, how far that is apart, and what it comes to."""

from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.accuracy import Errors, difference, errors, in_fp64, is_noise
from benchmarks.checks import asked, checks_of
from prefold.runtime import FoldedInputError

# Of the logits' scale, in fp32: a wrong row or position changes logits by about their whole size.
ROUNDING = 1e-5
# A fold that cannot be equal may have this many times the source's own error against fp64.
AS_ACCURATE = 1.05


class Comparison:
    """All checks of two models: what either says, how far that is apart, and what it comes to."""

    def __init__(self, source: PreTrainedModel, folded: PreTrainedModel, task: str, rows: dict[str, float]) -> None:
        self.source, self.folded = source, folded
        self.checks = checks_of(source, task)
        self.said: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.differences, self.skipped, self.reason = dict(rows), dict[str, str](), ""
        self.errors: dict[str, tuple[Errors, Errors]] = {}

    def run(self) -> None:
        """Ask both models, and fp64 where they are not equal."""
        for name in self.checks:
            self._ask(name)
        if not self.reason and (not self.is_exact or self._too_far()):
            self._ask_in_fp64()

    def _ask(self, name: str) -> None:
        check = self.checks[name]
        try:
            expected = asked(check, self.source)
        except Exception as error:
            self.skipped[name] = spelled(error)
            return
        try:
            got = asked(check, self.folded)
            self.differences[name] = difference(got, expected)
            self.said[name] = expected, got
        except Exception as error:
            # Code that lies in a checkpoint has a class of its own by that name.
            if type(error).__name__ == FoldedInputError.__name__:
                self.skipped[name] = f"the folded model refuses: {error}"
            else:
                self.reason = self.reason or f"{name}: {spelled(error)}"

    def _ask_in_fp64(self) -> None:
        with in_fp64(self.source) as double:
            for name, (expected, got) in self.said.items():
                try:
                    true = asked(self.checks[name], double)
                    own, other = errors(expected, true), errors(got, true)
                except Exception as error:
                    self.skipped[f"{name} in fp64"] = spelled(error)
                    continue
                if is_noise(own):
                    self.errors[name] = own, other
                else:
                    self.skipped[f"{name} in fp64"] = f"says something else: NMSE {own.nmse:.1e}"

    @property
    def is_exact(self) -> bool:
        """Tell whether no bit of the rows and of the pass over the vocabulary differs."""
        return self.differences.get("rows") == 0.0 and self.differences.get("vocabulary") == 0.0

    def judged(self) -> tuple[str, str]:
        """Return the result, and the reason for a wrong one."""
        far = self._too_far()
        if not all(self._is_as_accurate(name) for name in far):
            worst = max(far, key=lambda name: self.differences[name])
            return "wrong", f"{worst}: differs by {self.differences[worst]:.1e} of its scale"
        if self.is_exact and not far:
            return "exact", ""
        ratio = self.ratio
        return ("as accurate" if ratio is not None and ratio <= AS_ACCURATE else "close"), ""

    def _too_far(self) -> list[str]:
        return [name for name, apart in self.differences.items() if not apart <= ROUNDING]

    def _is_as_accurate(self, name: str) -> bool:
        if name not in self.errors:
            return False
        own, other = self.errors[name]
        return other.nmse <= AS_ACCURATE * own.nmse

    @property
    def ratio(self) -> float | None:
        """Return the folded model's NMSE by the source's, over all checks together."""
        if not self.errors:
            return None
        own, other = (sum(side, Errors(0.0, 0.0, 0.0)) for side in zip(*self.errors.values(), strict=True))
        return other.nmse / own.nmse if own.nmse else None

    def figures(self) -> dict[str, Any]:
        """Return what a result keeps."""
        own = {name: (pair[0].largest, pair[0].nmse) for name, pair in self.errors.items()}
        other = {name: (pair[1].largest, pair[1].nmse) for name, pair in self.errors.items()}
        told = {"differences": self.differences, "skipped": self.skipped, "error_ratio": self.ratio}
        return told | {"source_error": own, "folded_error": other}


def spelled(error: Exception) -> str:
    """Return what an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"
