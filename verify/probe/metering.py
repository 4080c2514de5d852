"""What steps read of parameters, and what of that is folded.

Of weights that stay quantized in memory the formula, which counts values, does not know the bytes; then the reads of
the folded modules are measured, and what the fold saves is compared with those.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.convert.fold.layout import Cut
from prefold.convert.fold.meter import Meter, metered
from prefold.convert.fold.reads import Census
from prefold.convert.model.inputs import whole_inputs
from prefold.verify.checks import Outcome
from prefold.verify.probe.job import READ_BATCHES


def measure_reads(model: PreTrainedModel) -> dict[str, Meter]:
    """Count what one decode step touches of parameters, per batch size."""
    vocabulary = model.config.get_text_config().vocab_size
    meters = {}
    for batch in READ_BATCHES:
        ids = torch.arange(batch).remainder(vocabulary).view(batch, 1)
        with metered(model) as meter:
            model(**whole_inputs(model, ids))
        meters[str(batch)] = meter
    return meters


def measure_folded(model: PreTrainedModel, cuts: list[Cut], meters: dict[str, Meter]) -> dict[str, Any]:
    """Tell, of a source, the bytes of its parameters, and those that steps read of what is folded, per batch size.

    Tensors of folded modules that are no parameters are named: a meter does not see them.
    """
    columns = tuple(f"{module}." for cut in cuts for module in cut.eliminated[1:])
    embeddings = tuple(f"{cut.embedding}." for cut in cuts)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "reads": {batch: _read(meter, columns, embeddings) for batch, meter in meters.items()},
        "unseen": sorted(name for name in model.state_dict() if name.startswith(columns) and name not in parameters),
    }


def _read(meter: Meter, columns: tuple[str, ...], embeddings: tuple[str, ...]) -> int:
    """Sum up bytes; an embedding's weight may be others', too: of it only what is looked up counts."""
    whole = sum(size for name, size in meter.whole.items() if name.startswith(columns))
    return whole + sum(size for name, size in meter.gathered.items() if name.startswith(columns + embeddings))


def is_packed(folded: dict[str, Any], census: Census, itemsize: int) -> bool:
    """Say whether parameters take other memory than ``itemsize`` for each of their values."""
    packed: bool = folded["parameter_bytes"] != census.total * itemsize
    return packed


def check_packed_reads(
    source: dict[str, int], after: dict[str, int], folded: dict[str, Any], census: Census, itemsize: int
) -> Outcome:
    """Compare the bytes saved with those that the source reads of what is folded, less the table's, to the byte.

    Where folded modules keep tensors that are no parameters, as scales or packed weights in buffers, what is counted
    is not all that is read: then nothing is claimed.
    """
    problems, batches = list[str](), list[dict[str, Any]]()
    for batch in READ_BATCHES:
        saved = source[str(batch)] - after[str(batch)]
        expected = folded["reads"][str(batch)] - round(census.read_after(batch) * itemsize)
        if saved != expected:
            problems.append(f"batch {batch}: {saved:,} bytes saved, folded modules less their rows are {expected:,}")
        told = {"before_bytes": source[str(batch)], "after_bytes": after[str(batch)]}
        batches.append({"batch": batch, **told, "folded_bytes": folded["reads"][str(batch)]})
    first = batches[0]
    saving = 1 - first["after_bytes"] / first["before_bytes"]
    summary = f"{first['before_bytes']:,} bytes per token before, {first['after_bytes']:,} after ({saving:.2%} saved)"
    summary += "" if problems else ", as measured in the folded modules; the formula is for unquantized weights"
    if folded["unseen"] and not problems:
        summary = f"not compared: {folded['unseen'][0]} is no parameter, and parameters alone are counted"
    return Outcome(not problems, summary, {"batches": batches, "unseen": folded["unseen"]}, problems)
