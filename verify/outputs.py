"""Checks of a folded model's outputs: rows, logits, greedy tokens, speed."""

from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from typing import Any

import torch

from prefold.verify.checks import Outcome, not_run
from prefold.verify.compare import Distance, distance
from prefold.verify.probe.job import WIDE

# A one-row product may sum in another order than the many-row product that made the table: always in fp32, in 3e-4 of
# the values in bf16. What that does to logits is bounded by what it does to the source itself.
_WIDE_LOGITS, _WIDE_NMSE, _FLOOR_FACTOR = 1e-4, 1e-8, 2
# Beyond rounding, "excellent" on llama.cpp's scale for converted models; only merged residuals come near it.
_NMSE = 1e-4
# A fold of a sum of look-ups rounds elsewhere than its source, and not more: so much, seen to suffice on every
# architecture of docs/coverage.md, is left for chance.
_TRUTH_FACTOR = 1.05
# Whose positions make up a mean error, where there are such, beside cached steps.
_PASSES = ("prefill", "padded", "text", "passages")

Outputs = dict[str, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check_rows(figures: dict[str, Any], dtype: str) -> Outcome:
    """Judge the comparison of every row with the live first layer.

    16-bit rows must be equal where they were computed as they are compared: same kind of processor, threads and rows
    at once. Elsewhere, and in fp32, they may differ by the rounding of a matrix product. Of rows in fewer bytes the
    bytes must be equal; elsewhere a code may be its neighbour, where rounding may bring it there.
    """
    worst = max(figures["max_abs_difference"].values())
    kind = "beyond_rounding" if dtype in WIDE or not figures["same_circumstances"] else "unequal"
    beyond, first = figures[kind], figures[f"first_{kind}"]
    problems = []
    if beyond:
        column = max(figures["max_abs_difference"], key=figures["max_abs_difference"].__getitem__)
        problems.append(f"{beyond:,} wrong rows, the first of tokens {first}, furthest off in {column} ({worst:.3g})")
    if figures["not_finite"]:
        problems.append(
            f"{figures['not_finite']:,} rows are not finite, the first of tokens {figures['first_not_finite']}"
        )
    if figures.get("padding_not_zero"):
        padded, first = figures["padding_not_zero"], figures["first_padding_not_zero"]
        problems.append(f"{padded:,} rows are not zero behind their values, the first of tokens {first}")
    summary = f"all {figures['rows']:,} rows equal the live first layer's"
    if figures["unequal"]:
        summary = f"{figures['unequal']:,} of {figures['rows']:,} rows differ, by at most {worst:.3g}"
        summary += "" if problems else ": rounding of a matrix product"
    summary += f"; {_words_of_errors(figures['errors'])}" if "errors" in figures else ""
    return Outcome(not problems, summary, figures | {"max_abs": worst}, problems)


def _words_of_errors(errors: dict[str, dict[str, float]]) -> str:
    """Describe the column that lost most when rows were stored in fewer bytes."""
    column = max(errors, key=lambda name: errors[name]["relative"])
    relative, largest = errors[column]["relative"], errors[column]["max_abs"]
    return f"stored in fewer bytes, {column} is furthest off: {relative:.2%}, max |Δ| {largest:.3g}"


def _is_close(apart: Distance, floor: Distance, dtype: str) -> bool:
    if not (isfinite(apart.max_abs) and isfinite(floor.max_abs)):
        return False
    if dtype in WIDE:
        near = apart.max_abs <= max(_WIDE_LOGITS, _FLOOR_FACTOR * floor.max_abs)
        return near and apart.nmse <= max(_WIDE_NMSE, _FLOOR_FACTOR * floor.nmse)
    return apart.nmse <= max(_NMSE, floor.nmse)


def what_is_broken(one: torch.Tensor, other: torch.Tensor) -> str | None:
    """Return why logits cannot be compared with the source's, which are ``one``; None where they can."""
    if one.shape != other.shape:
        return f"logits have shape {list(other.shape)}, the source's {list(one.shape)}"
    if not one.isfinite().all():
        return "the source's own logits are not finite, so nothing can be compared with them"
    return None if other.isfinite().all() else "logits are not finite"


def _complaint(one: torch.Tensor, other: torch.Tensor, far: Distance, floor: Distance) -> str:
    return what_is_broken(one, other) or f"{far}; the source's own noise floor is {floor}"


def check_logits(source: Outputs, folded: Outputs, dtype: str, truth: Outputs | None = None) -> Outcome:
    """Compare logits of prefill, cached steps and a left-padded batch, beside the source's own noise floor.

    Steps are compared up to the first token that the two choose differently: behind it they continue other texts.
    ``truth`` are the source's outputs in float64, for a fold that cannot be equal bit for bit: it must not be further
    from those than the source is.
    """
    pairs = _pairs(source, folded)
    floor = distance(source["prefill"].flatten(0, -2), source["prefill"].flatten(0, -2))
    if "step" in source:
        floor = distance(source["prefill"][-len(source["step"]) - 1 : -1], source["step"])
    apart = {name: distance(*pair) for name, pair in pairs.items()}
    figures: dict[str, Any] = {name: asdict(far) for name, far in apart.items()}
    figures |= {"exact": all(far.is_zero for far in apart.values()), "noise_floor": asdict(floor)}
    figures |= {"steps_compared": len(pairs["step"][0])} if "step" in pairs else {}
    if truth:
        errors, summary, problems = _against_truth(source, folded, truth)
        return Outcome(not problems, summary, figures | errors, problems)
    problems = [
        f"{name}: {_complaint(*pairs[name], far, floor)}"
        for name, far in apart.items()
        if not _is_close(far, floor, dtype)
    ]
    return Outcome(not problems, _summary(apart, floor), figures, problems)


def _pairs(source: Outputs, folded: Outputs) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the outputs of both for the same tokens, ``[positions, vocab]`` each."""
    pairs = {name: (source[name].flatten(0, -2), folded[name].flatten(0, -2)) for name in ("prefill", "padded")}
    if "step" in source:
        shared = _shared_steps(source, folded)
        pairs["step"] = source["step"][:shared], folded["step"][:shared]
    return pairs


def same_passes(source: Outputs, folded: Outputs, third: Outputs) -> dict[str, Triple]:
    """Return, by pass, outputs of source, folded and a ``third`` model for the same, ``[positions, vocab]`` each.

    The third ran one prefill over the source's generated text; its positions stand beside the others' cached steps.
    """
    parts = {name: (source[name], folded[name], third[name]) for name in _PASSES if name in source}
    if "step" in source:
        shared, steps = _shared_steps(source, folded), len(source["step"])
        read = third["prefill"][-steps - 1 : -1][:shared]
        parts["step"] = source["step"][:shared], folded["step"][:shared], read
    flat = {name: [each.flatten(0, -2) for each in part] for name, part in parts.items()}
    return {name: (one, two, three) for name, (one, two, three) in flat.items()}


def _against_truth(source: Outputs, folded: Outputs, truth: Outputs) -> tuple[dict[str, Any], str, list[str]]:
    """Measure the distances of both from float64 over all passes, and from each other."""
    parts = same_passes(source, folded, truth)
    for one, two, _ in parts.values():
        if broken := what_is_broken(one, two):
            return {"error_ratio": torch.inf}, broken, [broken]
    one, two, exact = (torch.cat(each) for each in zip(*parts.values(), strict=True))
    errors = {"source_error": distance(exact, one), "folded_error": distance(exact, two), "between": distance(one, two)}
    ratio = errors["folded_error"].nmse / max(errors["source_error"].nmse, 1e-300)
    apart = ", ".join(f"{name.replace('_', ' ')} {far.nmse:.3g}" for name, far in errors.items())
    summary = f"NMSE against float64: {apart}; the folded one's is {ratio:.3f} x the source's"
    figures = {name: asdict(far) for name, far in errors.items()} | {"error_ratio": ratio}
    return figures, summary, [] if ratio <= _TRUTH_FACTOR else [summary]


def _summary(apart: dict[str, Distance], floor: Distance) -> str:
    """Name the passes that are equal bit for bit, and the distance of the worst of the others."""
    words = {"prefill": "prefill", "step": "cached steps", "padded": "left-padded batch"}
    equal = [words[name] for name, far in apart.items() if far.is_zero]
    parts = [f"{', '.join(equal)} equal bit for bit"] if equal else []
    if len(equal) < len(apart):
        name, worst = max(apart.items(), key=lambda named: named[1].max_abs)
        parts += [f"{words[name]} {worst}", f"the source, prefill against its own steps: {floor}"]
    return "; ".join(parts)


def _first_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """Return the first index at which two rows of tokens differ, or their length."""
    pairs = zip(one.tolist(), other.tolist(), strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(one))


def _shared_steps(source: Outputs, folded: Outputs) -> int:
    """Count the steps that continue the same text."""
    return _first_difference(source["tokens"][0], folded["tokens"][0]) + 1


def _parted(source: Outputs, folded: Outputs) -> Iterator[tuple[str, bool, float]]:
    """Yield, for each continuation that parts: a line, whether each token is among the other's best, and the margin."""
    for prompt, (one, other) in enumerate(zip(source["tokens"], folded["tokens"], strict=True)):
        at = _first_difference(one, other)
        if at < len(one):
            is_tie = one[at] in folded["top"][prompt, at] and other[at] in source["top"][prompt, at]
            line = f"prompt {prompt}: token {at} is {int(other[at])}, the source's is {int(one[at])}"
            yield line, is_tie, float(source["margin"][prompt, at])


def check_greedy(source: Outputs, folded: Outputs, *, exact: bool, truth: Outputs | None = None) -> Outcome:
    """Compare greedy tokens, ``[prompts, new]``.

    Where logits are equal bit for bit, tokens must be. Where they are not, a near tie may fall the other way:
    then, at the first token that differs, each side's token must be among the other's five best (vLLM's rule), and,
    where the ``truth`` in float64 is known, the source's two best must be closer than its own noise can bring them.
    """
    if "tokens" not in source:
        return not_run("the model does not generate")
    noise = 2 * float((source["prefill"].double() - truth["prefill"].double()).abs().max()) if truth else torch.inf
    if source["tokens"].shape != folded["tokens"].shape:
        shapes = [list(tokens["tokens"].shape) for tokens in (folded, source)]
        return Outcome(False, "1 problem", problems=[f"tokens have shape {shapes[0]}, the source's {shapes[1]}"])
    parted = list(_parted(source, folded))
    problems = [line for line, is_tie, margin in parted if exact or not is_tie or margin > noise]
    prompts, new = source["tokens"].shape
    equal = prompts - len(parted)
    summary = f"{equal} of {prompts} continuations of {new} tokens equal"
    if equal < prompts and not problems:
        summary += ", the others part where two tokens are nearly as good"
    return Outcome(not problems, summary, {"continuations": prompts, "equal": equal, "tokens": new}, problems)


def check_speed(speed: dict[str, Any], source: dict[str, int], folded: dict[str, int]) -> Outcome:
    """Report the measured ratio of decode speeds beside the one that the reads predict; a figure, not a pass mark."""
    predicted = source["1"] / folded["1"]
    sides = {"source": source["1"], "folded": folded["1"]}
    rates = {f"{side}_bytes_per_second": speed[f"{side}_tokens_per_second"] * size for side, size in sides.items()}
    rates_in_words = [
        f"{side} {speed[f'{side}_tokens_per_second']:.1f} tokens/s, {rates[f'{side}_bytes_per_second'] / 1e9:.2f} GB/s"
        for side in sides
    ]
    summary = f"decodes {speed['ratio']:.3f} x as fast (median of pairs); the reads predict {predicted:.3f} x"
    return Outcome(True, f"{summary}; {'; '.join(rates_in_words)}", speed | rates | {"predicted_ratio": predicted})
