"""Find, by experiment, the modules whose output depends on the token alone.

The same tokens are run in another order and at other positions. A module whose output rows follow their
tokens is token-pure. Nothing here knows the name of an architecture.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from prefold.convert.errors import UnsupportedModel
from prefold.convert.skeleton import Stack
from prefold.convert.trace import Override, Trace, trace

# A product of matrices may round a row differently when it stands elsewhere in the batch: by 1e-6 of the
# output's scale in fp32. A row that sees its position or its neighbours changes by about its whole size.
ROW_TOLERANCE = 1e-4
BATCH, SEQ = 2, 8


@dataclass(frozen=True)
class Pure:
    """A token-pure module that has weights.

    Attributes:
        name: the module's name in the model.
        shape: of one row of its output.
        order: when it is entered in a forward pass.
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
class Discovery:
    """What the experiment found.

    Attributes:
        columns: modules to store, in the order in which a pass enters them; the first is the residual.
        dropped: modules whose output nobody reads once the columns are stored.
        routers: modules inside the columns that choose experts.
        mergeable: the column that may be added to the residual beforehand, if there is one.
        block_output: of the first block for the experiment's tokens.
        padded_output: the same with the tokens that ``padding_mask`` names as padding.
    """

    columns: list[Pure]
    dropped: list[Pure]
    routers: list[str]
    mergeable: str | None
    block_output: torch.Tensor | None
    padded_output: torch.Tensor | None


def experiment_tokens(config_vocab: int, special: set[int]) -> torch.Tensor:
    """Return distinct ordinary tokens, ``[2, 8]``."""
    ordinary = [token for token in range(config_vocab) if token not in special]
    return torch.tensor(ordinary[: BATCH * SEQ]).view(BATCH, SEQ)


def padding_mask() -> torch.Tensor:
    """Return an attention mask that pads some positions on the left, ``[2, 8]``."""
    mask = torch.ones(BATCH, SEQ, dtype=torch.long)
    mask[0, : SEQ // 2] = mask[1, :1] = 0
    return mask


def _mirrored(tensor: torch.Tensor) -> torch.Tensor:
    """Reverse batch and sequence: with an even length no token keeps its position."""
    return tensor.flip(0, 1)


def same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether two tensors differ by no more than the rounding of a matrix product."""
    scale = one.abs().max()
    return bool((one - other).abs().max() <= ROW_TOLERANCE * scale)


def _follows_tokens(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Say whether rows moved with their tokens, and are not merely the same for all."""
    if one is None or other is None:
        return False
    if not one.is_floating_point() or one.shape != other.shape or one.shape[:2] != (BATCH, SEQ) or one.dim() < 3:
        return False
    constant = same_rows(one, one[:1, :1].expand_as(one))
    return not constant and same_rows(one, _mirrored(other))


def _at_padding(rows: torch.Tensor, padded: torch.Tensor | None) -> bool | None:
    """Say whether padded positions become zero; None where they become anything else but what their token is."""
    if padded is None or padded.shape != rows.shape:
        return None
    hidden = padding_mask() == 0
    if same_rows(rows, padded):
        return False
    return True if not padded[hidden].any() and same_rows(rows[~hidden], padded[~hidden]) else None


def _pure_modules(model: PreTrainedModel, here: Trace, there: Trace, padded: Trace) -> list[Pure]:
    """Return the outermost token-pure modules with weights, in the order of entry."""
    found: list[Pure] = []
    for name, module in model.named_modules():
        calls, moved = here.calls.get(name, []), there.calls.get(name, [])
        if len(calls) != 1 or len(moved) != 1 or any(name.startswith(f"{outer.name}.") for outer in found):
            continue
        output, other = calls[0].output, moved[0].output
        if output is None or next(module.parameters(), None) is None or not _follows_tokens(output, other):
            continue
        masked = _at_padding(output, padded.calls[name][0].output)
        if masked is not None:
            found.append(Pure(name, list(output.shape[2:]), calls[0].order, output, masked))
    return sorted(found, key=lambda pure: pure.order)


@dataclass(frozen=True)
class _Hypothesis:
    """What would happen if one module's output were something else: unreadable, or zero and part of the residual."""

    module: Pure
    merged_into: Pure | None = None


def _replayed(module: Pure, hypotheses: list[_Hypothesis]) -> Override:
    """Return the module's rows once as they are and once more as each hypothesis has them, stacked along the batch."""
    variants = [module.rows]
    for hypothesis in hypotheses:
        rows = module.rows
        if hypothesis.module is module:
            rows = torch.full_like(rows, 0 if hypothesis.merged_into else torch.nan)
        elif hypothesis.merged_into is module:
            rows = rows + hypothesis.module.rows
        variants.append(rows)
    stacked = torch.cat(variants)
    return lambda _: stacked.clone()


def _try_all(
    model: PreTrainedModel, stack: Stack, ids: torch.Tensor, pure: list[Pure], hypotheses: list[_Hypothesis]
) -> list[bool]:
    """Run all hypotheses side by side in one pass, and say which leave the block's output as it was.

    They are independent: every pure module is replayed, so only what stays alive can read another's output.
    """
    overrides = {module.name: _replayed(module, hypotheses) for module in pure}
    output = trace(model, stack.first_block, ids.repeat(1 + len(hypotheses), 1), overrides).block_output
    if output is None:
        return [False for _ in hypotheses]
    unchanged, *others = output.split(BATCH)
    return [same_rows(unchanged, other) for other in others]


def _unread_and_mergeable(
    model: PreTrainedModel, stack: Stack, ids: torch.Tensor, pure: list[Pure]
) -> tuple[set[str], str | None]:
    """Name the modules whose output nobody reads, and the column that may be added to the residual beforehand."""
    poisoned = [_Hypothesis(module) for module in pure]
    merged = [
        _Hypothesis(module, into)
        for module in pure
        for into in pure
        if into.order < module.order and into.shape == module.shape
    ]
    valid = _try_all(model, stack, ids, pure, poisoned + merged)
    unread = {h.module.name for h, ok in zip(poisoned, valid, strict=False) if ok}
    residual = next(module.name for module in pure if module.name not in unread)
    mergeable = [
        h.module.name
        for h, ok in zip(merged, valid[len(poisoned) :], strict=True)
        if ok and h.merged_into and h.merged_into.name == residual and h.module.name not in unread
    ]
    return unread, next(iter(mergeable), None)


def _attention(stack: Stack, here: Trace, there: Trace) -> str | None:
    """Name the first direct part of the block that sees more than its token: the attention, or what stands for it."""
    impure: list[tuple[int, str]] = []
    for name, calls in here.calls.items():
        direct = name.rpartition(".")[0] == stack.first_block
        if direct and not _follows_tokens(calls[0].tensor, there.calls[name][0].tensor):
            impure.append((calls[0].order, name))
    return min(impure)[1] if impure else None


def discover(model: PreTrainedModel, stack: Stack, ids: torch.Tensor, *, assume_parallel: bool = False) -> Discovery:
    """Find what folds in the first block of a materialized skeleton.

    ``assume_parallel`` asks what would fold if the FFN did not wait for the attention: the attention's
    output is silenced.

    Raises:
        UnsupportedModel: nothing folds; the reasons say why.
    """
    silenced: dict[str, Override] = {}
    here, there = (trace(model, stack.first_block, tokens) for tokens in (ids, _mirrored(ids)))
    if assume_parallel:
        attention = _attention(stack, here, there)
        silenced = {attention: torch.zeros_like} if attention else {}
        here, there = (trace(model, stack.first_block, tokens, silenced) for tokens in (ids, _mirrored(ids)))
        here.calls.pop(stack.first_block)  # with nothing to attend to, the whole block follows its token
    padded = trace(model, stack.first_block, ids, silenced, padding_mask())
    pure = _pure_modules(model, here, there, padded)
    _refuse_barren(pure, stack)
    unread, mergeable = _unread_and_mergeable(model, stack, ids, pure)
    return Discovery(
        columns=[module for module in pure if module.name not in unread],
        dropped=[module for module in pure if module.name in unread],
        routers=[name for name, calls in here.calls.items() if any(call.returns_indices for call in calls)],
        mergeable=mergeable,
        block_output=here.block_output,
        padded_output=padded.block_output,
    )


def _refuse_barren(pure: list[Pure], stack: Stack) -> None:
    inside = [module for module in pure if module.name.startswith(f"{stack.first_block}.")]
    if not inside:
        raise UnsupportedModel(
            ["nothing folds: every module of the first block sees its position or other tokens, not the token alone"]
        )
