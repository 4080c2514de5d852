"""The bytes that steps read of both models, against the formula.

Of weights that stay quantized in memory the formula, which counts values, does not know the bytes; then the reads of
the folded modules are measured, and what the fold saves is compared with those.
"""

from typing import Any

from prefold.convert.fold import ParameterReads, count_reads
from prefold.verify.checks import Outcome
from prefold.verify.probe.job import READ_BATCHES


def check_reads(source: dict[str, int], folded: dict[str, int], census: ParameterReads, itemsize: int) -> Outcome:
    """Compare the measured reads of both models with the formula, to the byte.

    With experts, how much a step reads depends on what its tokens choose; then the difference must agree.
    """
    problems, batches = list[str](), list[dict[str, Any]]()
    for batch in READ_BATCHES:
        formula = count_reads(census, batch)
        before, after = source[str(batch)], folded[str(batch)]
        saved = round((formula.model_before - formula.model_after) * itemsize)
        if before - after != saved:
            problems.append(f"batch {batch}: {before - after:,} bytes saved, the formula says {saved:,}")
        expected = round(formula.model_before * itemsize)
        if not census.has_experts and before != expected:
            problems.append(f"batch {batch}: the source reads {before:,} bytes, the formula says {expected:,}")
        batches.append({"batch": batch, "before_bytes": before, "after_bytes": after, "formula_saved_bytes": saved})
    summary = _summary(batches[0], census) + ("" if problems else ", as the formula says")
    return Outcome(not problems, summary, {"batches": batches}, problems)


def _summary(first: dict[str, Any], census: ParameterReads) -> str:
    before, after = first["before_bytes"], first["after_bytes"]
    unit = "token" if (length := census.cuts[0].length) == 1 else f"{length} tokens"
    return f"{before:,} bytes per {unit} before, {after:,} after ({1 - after / before:.2%} saved)"


def is_packed(folded: dict[str, Any], census: ParameterReads, itemsize: int) -> bool:
    """Return whether parameters take other memory than ``itemsize`` for each of their values."""
    packed: bool = folded["parameter_bytes"] != census.total * itemsize
    return packed


def check_packed_reads(
    source: dict[str, int], after: dict[str, int], folded: dict[str, Any], census: ParameterReads, itemsize: int
) -> Outcome:
    """Compare the bytes saved with those that the source reads of folded modules, less the table's, to the byte.

    Folded modules may keep tensors that are no parameters, as scales or packed weights in buffers, which are not
    counted: then nothing is claimed.
    """
    problems, batches = list[str](), list[dict[str, Any]]()
    for batch in READ_BATCHES:
        saved = source[str(batch)] - after[str(batch)]
        expected = folded["reads"][str(batch)] - round(census.read_after(batch) * itemsize)
        if saved != expected:
            problems.append(f"batch {batch}: {saved:,} bytes saved, folded modules less their rows are {expected:,}")
        sizes = {"before_bytes": source[str(batch)], "after_bytes": after[str(batch)]}
        batches.append({"batch": batch, **sizes, "folded_bytes": folded["reads"][str(batch)]})
    summary = _summary(batches[0], census)
    summary += "" if problems else ", as measured in the folded modules; the formula is for unquantized weights"
    if folded["unseen"] and not problems:
        summary = f"not compared: {folded['unseen'][0]} is no parameter, and parameters alone are counted"
    return Outcome(not problems, summary, {"batches": batches, "unseen": folded["unseen"]}, problems)
