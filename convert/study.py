"""Everything that can be known of a model without its weights: what folds, and what that is worth."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.convert.cut import Cut, choose_cut
from prefold.convert.discover import discover, experiment_tokens
from prefold.convert.errors import UnsupportedModel
from prefold.convert.reads import Census, take_census
from prefold.convert.skeleton import Stack, build_on_meta, find_stack, materialize, prune
from prefold.convert.trial import try_fold

_ROWS = 64


@dataclass(frozen=True)
class Study:
    """What was found out about a model.

    Attributes:
        stack: where its blocks are.
        cut: what folds.
        census: what a step reads.
        head: name of the output head's weight where it is tied to the embedding, else None.
        mergeable_width: values of the column that could be merged into the residual, 0 where there is none.
    """

    stack: Stack
    cut: Cut
    census: Census
    head: str | None
    mergeable_width: int


def study_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    merge_residual: bool = False,
    assume_parallel: bool = False,
) -> Study:
    """Build the skeleton, experiment on it, and choose the cut.

    Raises:
        UnsupportedModel: nothing folds, or the model cannot be run from token ids; the reasons say why.
    """
    try:
        return _study(model_class, config, merge_residual=merge_residual, assume_parallel=assume_parallel)
    # Whatever a model stumbles over without its other blocks: it is refused, with that as the reason.
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        reason = f"{config.model_type}: its first block does not run alone ({type(error).__name__}: {said})"
        raise UnsupportedModel([reason]) from error


def _study(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, *, merge_residual: bool, assume_parallel: bool
) -> Study:
    model = build_on_meta(model_class, config, torch.float32)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stack = find_stack(model, config)
    if stack is None:
        raise UnsupportedModel([f"{config.model_type}: no stack of blocks found"])
    kept = sorted(set(stack.kinds))
    prune(model, stack, kept)
    embedding, head = _embedding(model), _tied_head(model)
    materialize(model, stack, _ROWS)
    ids = experiment_tokens(config.vocab_size, _special(config))
    found = discover(model, stack, ids, assume_parallel=assume_parallel)
    rows = model.get_parameter(f"{embedding}.weight").shape[0]
    cut = choose_cut(found, embedding, rows, merge_residual=merge_residual)
    census = take_census(shapes, model, stack, kept, cut, found.routers)
    if not assume_parallel:
        try_fold(model, stack, cut, found, ids)
    mergeable = sum(module.width for module in found.columns if module.name == found.mergeable)
    return Study(stack, cut, census, head, mergeable)


def _embedding(model: PreTrainedModel) -> str:
    return _name(model, model.get_input_embeddings())


def _name(model: PreTrainedModel, wanted: object) -> str:
    return next(str(name) for name, module in model.named_modules() if module is wanted)


def _tied_head(model: PreTrainedModel) -> str | None:
    head = model.get_output_embeddings()
    if head is None or head.weight is not model.get_input_embeddings().weight:
        return None
    return f"{_name(model, head)}.weight"


def _special(config: PreTrainedConfig) -> set[int]:
    """Return the ids that a model may treat otherwise than ordinary tokens."""
    ids = set[int]()
    for name, value in config.to_dict().items():
        if name.endswith("_token_id"):
            ids |= set(value) if isinstance(value, list) else {value}
    return ids
