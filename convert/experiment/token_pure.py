"""Token-pure modules: their outputs follow the token in every pass; and which of them are unread, or may be merged."""

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from prefold.convert.errors import ModelFailed, UnsupportedModel, model_code
from prefold.convert.experiment.look_ups import LookUp, find_look_ups
from prefold.convert.experiment.tokens import (
    BATCH,
    SEQ,
    follows_tokens,
    mirrored,
    neighbours_changed,
    padding_mask,
    same_rows,
)
from prefold.convert.experiment.trace import Override, Overrides, Trace, block_outputs, trace
from prefold.convert.model.inputs import Side, accepted


@dataclass(frozen=True)
class TokenPureModule:
    """A token-pure module that has weights.

    Attributes:
        shape: of one row of its output.
        order: of entry in a forward pass.
        rows: its output for the experiment's tokens, ``[batch, seq, *shape]``.
        masked: its output is zero at padded positions, whatever token is there.
    """

    name: str
    shape: list[int]
    order: int
    rows: torch.Tensor
    masked: bool = False

    @property
    def width(self) -> int:
        """Values in one row."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Passes:
    """The same tokens, run in several ways up to the end of the first block.

    Attributes:
        mirrored: in another order, at other positions.
        neighbours_changed: every second of them in the other sequence: the same positions, other neighbours.
        padded: some of them as padding.
        look_ups_changed: with other look-ups than the token's returning something else; None where there are none.
        cached: the last of them in a cached step behind the others; None where the model has no such steps.
    """

    original: Trace
    mirrored: Trace
    neighbours_changed: Trace
    padded: Trace
    look_ups_changed: Trace | None
    cached: Trace | None
    look_ups: list[LookUp]


def run_passes(model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor) -> Passes:
    """Run the experiment's passes."""
    orders = (ids, mirrored(ids), neighbours_changed(ids))
    original, mirrored_, neighbours = (trace(model, side, first_block, tokens) for tokens in orders)
    look_ups = find_look_ups(model, original, mirrored_)
    changed = None
    if look_ups:
        others: Overrides = {look_up.module: _changed() for look_up in look_ups}
        changed = trace(model, side, first_block, ids, others)
    padded = trace(model, side, first_block, ids, attention_mask=padding_mask())
    cached = cached_step(model, side, first_block, ids)
    return Passes(original, mirrored_, neighbours, padded, changed, cached, look_ups)


def _changed() -> Override:
    times = count(1)
    return lambda rows: rows.roll(1, -1) * (number := next(times)) + number


def cached_step(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, overrides: Overrides | None = None
) -> Trace | None:
    """Run all tokens but the last, and then the last with the cache of the others."""
    try:
        cache = _filled_cache(model, side, first_block, ids[:, :-1], overrides)
        if not cache:
            return None
        # Said, since a cache of several kinds of layers knows how long it is by one that did not run.
        places = {} if side.sees_source else accepted(model, {"position_ids": torch.full((BATCH, 1), SEQ - 1)})
        return trace(model, side, first_block, ids[:, -1:], overrides, **cache, **places)
    except ModelFailed:
        return None  # an encoder, or a model whose cache wants more than its first block: verification runs its steps


def _filled_cache(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, overrides: Overrides | None
) -> dict[str, Any]:
    """Return arguments for a pass behind some tokens; none where the model keeps no cache."""
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" in parameters:
        with model_code():
            own = DynamicCache(config=model.config)
            both = EncoderDecoderCache(own, DynamicCache(config=model.config)) if side.sees_source else own
        cache: dict[str, Any] = {"past_key_values": both, "use_cache": True}
        trace(model, side, first_block, ids, overrides, **cache)
        return cache
    with torch.no_grad(), model_code():
        output = model(**side.inputs(model, ids) | {"use_cache": True})
    kept = {name: output[name] for name in output if name in parameters}  # a cache of its own kind, by whatever name
    return kept | accepted(model, {"use_cache": True}) if kept else {}


def pure_modules(model: nn.Module, passes: Passes, reentered: Collection[str] = ()) -> list[TokenPureModule]:
    """Return the outermost token-pure modules with weights, in the order of entry, but those that run ``reentered``."""
    found: list[TokenPureModule] = []
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer.name}.") for outer in found)
        if name in reentered or is_inside or not has_weights(module):
            continue
        pure = _as_pure(name, passes)
        if pure is not None and not _holds_embedding(name, passes):
            found.append(pure)
    return sorted(found, key=lambda pure: pure.order)


def has_weights(module: nn.Module) -> bool:
    """Return whether a module or a part of it has parameters."""
    return next(module.parameters(), None) is not None


def _as_pure(name: str, passes: Passes) -> TokenPureModule | None:
    calls, moved = passes.original.calls.get(name, []), passes.mirrored.calls.get(name, [])
    if len(calls) != 1 or len(moved) != 1:
        return None
    output = calls[0].output
    if output is None or not follows_tokens(output, moved[0].output):
        return None
    masked = _at_padding(output, _first_output(name, passes.padded))
    if (
        masked is None
        or not _is_independent(name, output, passes.look_ups_changed)
        or not same_in_a_step(name, output, passes.cached)
    ):
        return None
    return TokenPureModule(name, list(output.shape[2:]), calls[0].order, output, masked)


def _holds_embedding(name: str, passes: Passes) -> bool:
    """Return whether the embedding is a part of a module: then that part becomes the table."""
    parts = [calls[0] for other, calls in passes.original.calls.items() if other.startswith(f"{name}.")]
    return any(call.taken is not None and not call.taken.is_floating_point() for call in parts)


def _at_padding(rows: torch.Tensor, padded: torch.Tensor | None) -> bool | None:
    """Return whether padded positions become zero; None where they become neither zero nor their token's row."""
    if padded is None or padded.shape != rows.shape:
        return None
    hidden = padding_mask() == 0
    if same_rows(rows, padded):
        return False
    return True if not padded[hidden].any() and same_rows(rows[~hidden], padded[~hidden]) else None


def _first_output(name: str, seen: Trace) -> torch.Tensor | None:
    """Return a module's first output; None where a pass does not enter it."""
    calls = seen.calls.get(name)
    return calls[0].output if calls else None


def _is_independent(name: str, output: torch.Tensor, changed: Trace | None) -> bool:
    if changed is None:
        return True
    other = _first_output(name, changed)
    return other is not None and same_rows(output, other)


def same_in_a_step(name: str, output: torch.Tensor, cached: Trace | None) -> bool:
    """Return whether a cached step gives the last token's row, and not those of the whole cache."""
    calls = cached.calls.get(name, []) if cached else []
    if not calls:
        return True
    step = calls[0].output
    last = output[:, SEQ - 1 :]
    return step is not None and step.shape == last.shape and same_rows(last, step)


@dataclass(frozen=True)
class _Hypothesis:
    """A module whose output is replaced: by unreadable values, or by zero once it is added to another's."""

    module: TokenPureModule
    merged_into: TokenPureModule | None = None

    def joins(self, name: str) -> bool:
        """Return whether it is that of a module that becomes part of another."""
        return self.merged_into is not None and self.merged_into.name == name


def _replayed(module: TokenPureModule, hypotheses: list[_Hypothesis]) -> Override:
    """Return the module's rows as they are, and as each hypothesis has them, stacked along the batch."""
    variants = [module.rows]
    for hypothesis in hypotheses:
        rows = module.rows
        if hypothesis.module is module:
            rows = torch.full_like(rows, 0 if hypothesis.merged_into else torch.nan)
        elif hypothesis.merged_into is module:
            rows = rows + hypothesis.module.rows.view_as(rows)
        variants.append(rows)
    return _fixed(torch.cat(variants))


def _fixed(rows: torch.Tensor) -> Override:
    return lambda _: rows.clone()  # a block may write to it


def _try_all(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    modules: list[TokenPureModule],
    hypotheses: list[_Hypothesis],
) -> list[bool]:
    """Run independent hypotheses in one pass over replayed modules; returns which keep the block's output."""
    overrides = {module.name: _replayed(module, hypotheses) for module in modules}
    output = trace(model, side, first_block, ids.repeat(1 + len(hypotheses), 1), overrides).block_output
    if output is None:
        return [False for _ in hypotheses]
    batches = BATCH * (1 + len(hypotheses))
    axis = next((axis for axis, size in enumerate(output.shape) if size == batches), None)
    if axis is None:
        return [False for _ in hypotheses]
    unchanged, *others = output.split(BATCH, axis)
    return [same_rows(unchanged, other) for other in others]


def find_unread_and_mergeable(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, modules: list[TokenPureModule]
) -> tuple[set[str], str | None]:
    """Name the modules whose output is unread, and the one that may be added to the residual beforehand."""
    poisoned = [_Hypothesis(module) for module in modules]
    merged = _merged(modules)
    valid = _try_all(model, side, first_block, ids, modules, poisoned + merged)
    unread = {h.module.name for h, ok in zip(poisoned, valid, strict=False) if ok}
    read = [module.name for module in modules if module.name not in unread]
    if not read:
        raise UnsupportedModel(["its first block reads nothing of what follows its tokens"])
    holds = [h.module.name for h, ok in zip(merged, valid[len(poisoned) :], strict=True) if ok and h.joins(read[0])]
    return unread, next((name for name in holds if name in read), None)


def _merged(modules: list[TokenPureModule]) -> list[_Hypothesis]:
    """Return the hypotheses that add a module to one that runs before it."""
    return [_Hypothesis(module, into) for module, into in _pairs(modules)]


def _pairs(modules: list[TokenPureModule]) -> list[tuple[TokenPureModule, TokenPureModule]]:
    """Return every module with each one before it that is as wide."""
    pairs = [(module, into) for module in modules for into in modules if into.order < module.order]
    return [(module, into) for module, into in pairs if into.width == module.width]


def find_summed(
    model: PreTrainedModel, side: Side, first_block: str, ids: torch.Tensor, modules: list[TokenPureModule]
) -> dict[str, str]:
    """Map modules to those before them, the residual aside, that every block only adds them to, to the bit."""
    summed = dict[str, str]()
    for one, other in _pairs([module for module in modules[1:] if not module.masked]):
        is_free = not {one.name, other.name} & {*summed, *summed.values()}
        if is_free and _adds_up(model, side, first_block, ids, one, other):
            summed[one.name] = other.name
    return summed


def _adds_up(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    one: TokenPureModule,
    other: TokenPureModule,
) -> bool:
    """Return whether blocks return the same of a sum and zeros as of its parts, and something else without a part.

    Rows have 16 bits here: where a model adds them up in a wider type, a stored sum would be rounded once more.
    """
    rows = one.rows.bfloat16(), other.rows.bfloat16()
    none, total = torch.zeros_like(rows[0]), rows[1] + rows[0].view_as(rows[1])
    try:
        apart, together, without = (
            block_outputs(model, side, first_block, ids, {one.name: _fixed(first), other.name: _fixed(second)})
            for first, second in (rows, (none, total), (none, rows[1]))
        )
    except ModelFailed:
        return False  # it does not take two types at once
    return all(map(torch.equal, apart, together)) and not all(map(torch.equal, apart, without))
