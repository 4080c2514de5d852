"""Bytes of parameters that steps read, and the part of them that is folded."""

from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.convert.fold import Cut, Meter, metered
from prefold.convert.model import whole_inputs
from prefold.verify.probe.job import READ_BATCHES


def measure_reads(model: PreTrainedModel, length: int = 1) -> dict[str, Meter]:
    """Count the bytes of parameters that one step reads, of ``length`` tokens in each text, per batch size."""
    vocabulary = model.config.get_text_config().vocab_size
    meters = {}
    for batch in READ_BATCHES:
        ids = torch.arange(batch).remainder(vocabulary).view(batch, 1).expand(batch, length)
        with metered(model) as meter:
            model(**whole_inputs(model, ids))
        meters[str(batch)] = meter
    return meters


def measure_folded(model: PreTrainedModel, cuts: list[Cut], meters: dict[str, Meter]) -> dict[str, Any]:
    """Return a source's bytes of parameters, and those that steps read of folded modules, per batch size.

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
    """Sum up bytes; of an embedding, whose weight may be shared, only rows that are looked up count."""
    whole = sum(size for name, size in meter.whole.items() if name.startswith(columns))
    return whole + sum(size for name, size in meter.gathered.items() if name.startswith(columns + embeddings))
