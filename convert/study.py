"""Study a model without its weights: what folds, and which cut saves most."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from prefold.common.errors import UsageError
from prefold.convert.errors import ModelFailed, UnsupportedModel, model_code
from prefold.convert.experiment.discover import DEEPEST, Discovery, discover
from prefold.convert.experiment.entries import shortest_entries
from prefold.convert.experiment.explain import ModuleDependency
from prefold.convert.experiment.tokens import experiment_tokens
from prefold.convert.fold.check import (
    check_fold_on_skeleton,
    find_unreached,
    require_unmoved_by_masks,
)
from prefold.convert.fold.layout import Column, Cut, EmbeddingSite, lay_out_row
from prefold.convert.fold.reads import ParameterReads, freed_by, measure_parameter_reads
from prefold.convert.model.filling import ThinProducts
from prefold.convert.model.inputs import Side, find_sides
from prefold.convert.model.load import kept_in_float32
from prefold.convert.model.running import run_side
from prefold.convert.model.skeleton import (
    Stack,
    build_on_meta,
    find_stacks,
    first_to_run,
    materialize,
    prune,
)
from prefold.convert.model.ties import Ties, find_ties, tied_modules
from prefold.convert.options import AUTO, FoldOptions

_ROWS = 64
LayOut = Callable[[Discovery, EmbeddingSite], Cut]


@dataclass(frozen=True)
class Choice:
    """A possible cut of one side: values that it saves of the reads of one token, and values that it stores."""

    cut: Cut
    saved: float
    values: int
    seen: list[ModuleDependency]


@dataclass(frozen=True)
class Study:
    """The results of a study.

    Attributes:
        cuts: one for each side that folds.
        choices: all possible cuts of those sides.
        unfolded: why a side does not fold where another does.
        unreached: modules of first blocks that no pass for a row enters.
        float32: parameters and buffers that stay so in a model of 16 bits.
        mergeable_width: values of the column that could be merged into the residual, 0 where there is none.
    """

    stacks: list[Stack]
    cuts: list[Cut]
    choices: list[Choice]
    unfolded: list[str]
    unreached: list[str]
    census: ParameterReads
    ties: Ties
    float32: set[str]
    mergeable_width: int


def study_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    options: FoldOptions = FoldOptions(),  # frozen
    dtype: torch.dtype = torch.float32,
) -> Study:
    """Build the skeleton of a model that runs in ``dtype``, experiment on it, and choose the cut of each side.

    Raises:
        UnsupportedModel: nothing folds, or the model cannot be run from token ids; the reasons say why.
        UsageError: there is no cut of the name that is wanted, or none as small, or rows would not be smaller.
    """
    try:
        with ThinProducts():
            return _study(model_class, config, options, dtype)
    except ModelFailed as failure:  # it stumbles without its other blocks
        raise UnsupportedModel([f"{config.model_type}: its first block does not run alone ({failure})"]) from failure


def _study(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, options: FoldOptions, dtype: torch.dtype
) -> Study:
    model = build_on_meta(model_class, config, torch.float32)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    declared, float32 = dict(model.all_tied_weights_keys), kept_in_float32(model, dtype)
    stacks = _pruned(model, config)
    cleared = materialize(model, _ROWS)
    entries, length = shortest_entries(model, stacks)
    sides, unfolded = _sides(model, stacks, entries, partial(_encoded, options, dtype, length))
    found = [fold for side in sides for fold in side]
    tied = partial(find_ties, model, declared, called=set(entries), cleared=cleared)
    ties = tied(_embeddings([side[0] for side in sides]))
    routers = [router for side in sides for router in side[0].found.routers]
    units = dict.fromkeys(float32, torch.float32.itemsize / dtype.itemsize)
    census = measure_parameter_reads(shapes, model, stacks, [fold.cut for fold in found], routers, ties, units)
    choices = _choices(census, found)
    chosen = _chosen(choices, sides, options, dtype)
    folds = [fold for fold in found if fold.cut in chosen]
    ties = tied(_embeddings(folds))
    cuts = _with_unused(model, [fold.cut for fold in folds], ties)
    unreached = find_unreached(model, stacks, cuts)
    _check(model, folds)
    width = sum(fold.found.mergeable_width for fold in folds)
    census = replace(census, cuts=cuts, freed=freed_by(ties))
    return Study(stacks, cuts, choices, unfolded, unreached, census, ties, float32, width)


def _pruned(model: PreTrainedModel, config: PreTrainedConfig) -> list[Stack]:
    """Remove the blocks that an experiment does without; returns the stacks."""
    stacks = find_stacks(model)
    if not stacks:
        raise UnsupportedModel([f"{config.model_type}: no stack of blocks found"])
    for stack in stacks:
        prune(model, stack, stack.kept)
    return stacks


def _chosen(choices: list[Choice], sides: list[list["_Fold"]], options: FoldOptions, dtype: torch.dtype) -> list[Cut]:
    each_side = [[choice for choice in choices if choice.cut.side == side[0].cut.side] for side in sides]
    return [choice.cut for choice in choose(each_side, options.cut, options.max_table, dtype.itemsize)]


def _check(model: PreTrainedModel, folds: list["_Fold"]) -> None:
    for fold in folds:
        require_unmoved_by_masks(model, fold.first_block, fold.cut, fold.ids)
        plain = replace(fold.cut, table=replace(fold.cut.table, encoding=None))
        check_fold_on_skeleton(model, fold.first_block, plain, fold.found, fold.ids)


@dataclass(frozen=True)
class _Fold:
    first_block: str
    ids: torch.Tensor
    found: Discovery
    cut: Cut


def _embeddings(folds: list[_Fold]) -> list[str]:
    return [fold.cut.embedding for fold in folds]


def _choices(census: ParameterReads, found: list[_Fold]) -> list[Choice]:
    """Return the deepest cut of each side, and those others that save reads."""
    choices = [_choice(census, fold) for fold in found]
    return [choice for choice in choices if choice.saved > 0 or choice.cut.name == DEEPEST]


def _choice(census: ParameterReads, fold: _Fold) -> Choice:
    alone = replace(census, cuts=[fold.cut])
    return Choice(fold.cut, alone.read_before(1) - alone.read_after(1), alone.made, fold.found.seen)


def choose(sides: list[list[Choice]], cut: str, most: int | None, itemsize: int) -> list[Choice]:
    """Choose a cut for each side: by its name, or those that save most reads and store no more bytes than ``most``.

    A side without a cut of that name gets its deepest.

    Raises:
        UsageError: no side has a cut of that name, none is small enough, or a named one is limited.
    """
    known = dict.fromkeys(choice.cut.name for side in sides for choice in side)
    names = cut.split(",")
    for name in set(names) - known.keys() - {AUTO}:
        raise UsageError(f"--cut {name}: there is no such cut, only {', '.join(known)}")
    if AUTO not in names:
        if most is not None:
            raise UsageError(f"--max-table chooses a cut, and --cut {cut} names one")
        return [next((choice for choice in side if choice.cut.name in names), side[0]) for side in sides]
    return _saving_most(sides, float("inf") if most is None else most, itemsize)


def _saving_most(sides: list[list[Choice]], limit: float, itemsize: int) -> list[Choice]:
    small = [each for each in product(*sides) if sum(choice.values for choice in each) * itemsize <= limit]
    if not small:
        least = sum(min(choice.values for choice in side) for side in sides) * itemsize
        raise UsageError(f"--max-table: the smallest table has {least:,} bytes, more than {limit:,}")
    return list(max(small, key=lambda each: sum(choice.saved for choice in each)))


def _sides(
    model: PreTrainedModel, stacks: list[Stack], entries: dict[str, list[int]], laid_out: LayOut
) -> tuple[list[list[_Fold]], list[str]]:
    """Find all cuts of every side, the deepest first; returns why sides do not fold, too."""
    folds, reasons = list[list[_Fold]](), list[str]()
    for side in find_sides(model):
        try:
            folds.append(_side(model, side, stacks, entries, laid_out))
        except UnsupportedModel as refusal:
            reasons += [f"{side.name}: {reason}" if side.name else reason for reason in refusal.reasons]
    if not folds:
        raise UnsupportedModel(reasons)
    return folds, reasons


def _side(
    model: PreTrainedModel, side: Side, stacks: list[Stack], entries: dict[str, list[int]], laid_out: LayOut
) -> list[_Fold]:
    ids = experiment_tokens(model.config)
    inside = [stack for stack in stacks if stack.name.startswith(f"{side.name}." if side.name else "")]
    stack = first_to_run(model, inside, lambda: run_side(model, side, ids))
    if stack is None:
        raise UnsupportedModel(["its tokens reach no stack of blocks"])
    reentered = {name for name, numbers in entries.items() if len(numbers) > 1} | tied_modules(model)
    found = discover(model, side, stack.first_block, ids, reentered)
    embedding = _embedding(model, side, entries, found[0])
    if not found[0].holds(embedding):
        raise UnsupportedModel([f"its embedding, {embedding}, is not what its tokens go through alone"])
    _require_own(model, embedding)
    whole = _sites(model, side, found, embedding, entries)
    return [_Fold(stack.first_block, ids, each, laid_out(each, site)) for each, site in whole]


def _sites(
    model: PreTrainedModel, side: Side, found: list[Discovery], embedding: str, entries: dict[str, list[int]]
) -> list[tuple[Discovery, EmbeddingSite]]:
    """Return the cuts with the places of their tables, but those whose look-up cannot be one."""
    places = [(each, embedding if each.holds(embedding) else each.columns[0].name) for each in found]
    return [
        (each, _site(model, side, look_up, embedding, entries))
        for each, look_up in places
        if look_up == embedding or _follows(model, look_up, embedding, entries)
    ]


def _follows(model: PreTrainedModel, look_up: str, embedding: str, entries: dict[str, list[int]]) -> bool:
    """Return whether a look-up beside the embedding holds rows alone, and runs behind it."""
    held = [name for name, _ in model.get_submodule(look_up).named_parameters(recurse=False)]
    entered = [entries.get(name, [0])[0] for name in (embedding, look_up)]
    return held == ["weight"] and entered[0] < entered[1]


def _site(
    model: PreTrainedModel, side: Side, look_up: str, embedding: str, entries: dict[str, list[int]]
) -> EmbeddingSite:
    """Return the place of the look-up that becomes the table: the embedding, or one beside it, with as many rows."""
    tokens_of = None if look_up == embedding else embedding
    rows = model.get_parameter(f"{embedding}.weight").shape[0]
    unreachable = _optional_embeddings(model, side, look_up, entries)
    return EmbeddingSite(side, look_up, tokens_of, rows, _entered_before(look_up, entries), unreachable)


def _require_own(model: PreTrainedModel, embedding: str) -> None:
    """Require that an embedding's parts beside its weight, as one token's own row, are no other module's."""
    held = dict(model.get_submodule(embedding).named_parameters(recurse=False))
    others = {id(part) for name, part in held.items() if name != "weight"}
    if "weight" not in held:
        raise UnsupportedModel([f"its embedding, {embedding}, holds no row for each token: {', '.join(held)}"])
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) and others & {id(each) for each in module.parameters(recurse=False)}:
            raise UnsupportedModel([f"its embedding, {embedding}, shares what it adds to its rows with {name}"])


def _encoded(options: FoldOptions, dtype: torch.dtype, length: int, found: Discovery, place: EmbeddingSite) -> Cut:
    return lay_out_row(found, place, length=length, merge_residual=options.merge_residual).encoded(dtype, options)


def _with_unused(model: PreTrainedModel, cuts: list[Cut], ties: Ties) -> list[Cut]:
    """Drop modules that only share a weight with the embeddings, where that weight is needed no more."""
    if ties.remaining_owners:
        return cuts
    names = {name.rpartition(".")[0] for name in ties.shared} - {cut.embedding for cut in cuts}
    unused = [Column(name, 0, [model.get_parameter(f"{name}.weight").shape[1]]) for name in sorted(names)]
    return [*cuts[:-1], replace(cuts[-1], dropped=[*cuts[-1].dropped, *unused])]


def _embedding(model: PreTrainedModel, side: Side, entries: dict[str, list[int]], found: Discovery) -> str:
    """Name the input embedding as the side calls it, or the one with its weight that a pass enters."""
    holder: Any = model.get_submodule(side.name)
    try:
        with model_code():
            embedding = holder.get_input_embeddings()
    except ModelFailed:
        return _only_embedding(model, found)
    modules = [(str(name), module) for name, module in model.named_modules(remove_duplicate=False)]
    inside = [name for name, module in modules if module is embedding and name.startswith(side.name)]
    if not inside:
        raise UnsupportedModel(["what it names as its input embedding is no module that its tokens go through"])
    tied = [name for name, each in modules if isinstance(each, nn.Embedding) and each.weight is embedding.weight]
    return next((name for name in [*inside, *tied] if name in entries), inside[0])


def _only_embedding(model: PreTrainedModel, found: Discovery) -> str:
    """Name the embedding of a side that calls none its input's: the only one among what follows the tokens."""
    pure = [each.name for each in [*found.columns, *found.dropped]]
    names = [name for name in pure if isinstance(model.get_submodule(name), nn.Embedding)]
    if len(names) != 1:
        raise UnsupportedModel(["it names no input embedding: several may make up a token's"])
    return names[0]


def _optional_embeddings(
    model: PreTrainedModel, side: Side, embedding: str, entries: dict[str, list[int]]
) -> list[str]:
    """Name embeddings, as of a language, that a call with ``input_ids`` alone never uses; no row holds theirs."""
    weight = model.get_parameter(f"{embedding}.weight")
    inside = f"{side.name}." if side.name else ""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.startswith(inside) and name not in entries
        if module.weight is not weight and module.weight.shape[1] == weight.shape[1]
    ]


def _entered_before(embedding: str, entries: dict[str, list[int]]) -> list[str]:
    """Name the modules around an embedding that a pass enters before it: a call of any of them begins a pass."""
    parts = embedding.split(".")[:-1]
    around = [".".join(parts[:length]) for length in range(len(parts) + 1)]
    looked_up = entries.get(embedding, [0])[0]
    return [name for name in around if not name or entries.get(name, [0])[0] <= looked_up]
