"""Entries of modules in a pass over a whole model."""

from itertools import count
from typing import Any

import torch
from transformers import PreTrainedModel

from prefold.convert.errors import ModelFailed, UnsupportedModel, model_code
from prefold.convert.experiment.tokens import SEQ, experiment_tokens
from prefold.convert.model.inputs import whole_inputs
from prefold.convert.model.running import hooks
from prefold.convert.model.skeleton import CalledAlone, Stack, call_with_hooks


@torch.no_grad()
def record_entries(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, list[int]]:
    """Run tokens through the whole model; returns each module's entries, numbered over all modules."""
    entries, number = dict[str, list[int]](), count()

    def enter(name: str) -> Any:
        return lambda *_: entries.setdefault(name, []).append(next(number))

    with hooks(model, {name: enter(name) for name, _ in model.named_modules()}, {}), model_code():
        model(**whole_inputs(model, ids))
    return entries


def shortest_entries(model: PreTrainedModel, stacks: list[Stack]) -> tuple[dict[str, list[int]], int]:
    """Record the entries of a pass over the shortest text of one token that the model runs; returns its length, too.

    Raises:
        UnsupportedModel: it runs none that is as short as the experiment's.
    """
    ids, failures = experiment_tokens(model.config), list[ModelFailed]()
    for length in range(1, SEQ + 1):
        try:
            return _hooked_entries(model, stacks, ids[:1, :1].expand(1, length)), length
        except ModelFailed as failure:
            failures.append(failure)
    record_entries(model, ids)
    raise UnsupportedModel([f"it does not run a token alone, nor {SEQ} times, as a table's are run: {failures[0]}"])


def _hooked_entries(model: PreTrainedModel, stacks: list[Stack], ids: torch.Tensor) -> dict[str, list[int]]:
    """Record the entries of a pass, also where the model calls its blocks alone."""
    try:
        return record_entries(model, ids)
    except CalledAlone:
        for stack in stacks:
            call_with_hooks(model, stack)
        return record_entries(model, ids)
