"""Tokens of an experiment, their positions, and when two outputs count as the same."""

from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedConfig

from prefold.convert.errors import UnsupportedModel

# A product of matrices may round a row differently when it stands elsewhere in the batch: by 1e-6 of the
# output's scale in fp32. A row that sees its position or its neighbours changes by about its whole size.
ROW_TOLERANCE = 1e-4
BATCH, SEQ = 2, 8
# Of two tokens, one can take the place of the other.
_FEWEST = 2


def experiment_tokens(config: PreTrainedConfig) -> torch.Tensor:
    """Return ordinary tokens, ``[2, 8]``: distinct ones, or of a small vocabulary those that there are, shuffled.

    Raises:
        UnsupportedModel: there are fewer than two.
    """
    special = _special(config.to_dict())
    tokens = (token for token in range(_vocabulary(config)) if token not in special)
    ordinary = torch.tensor(list(islice(tokens, BATCH * SEQ)), dtype=torch.long)
    if len(ordinary) < _FEWEST:
        raise UnsupportedModel(
            [f"its vocabulary has {len(ordinary)} ordinary tokens, too few to tell what follows them"]
        )
    repeated = torch.randint(len(ordinary), (BATCH * SEQ - len(ordinary),), generator=torch.Generator().manual_seed(0))
    return torch.cat([ordinary, ordinary[repeated]]).view(BATCH, SEQ)


def _vocabulary(config: PreTrainedConfig) -> int:
    return getattr(config.get_text_config(), "vocab_size", None) or 0


def _special(settings: dict[str, Any]) -> set[int]:
    ids = set[int]()
    for name, value in settings.items():
        if name.endswith("_token_id"):
            ids |= set(value) if isinstance(value, list) else {value}
    return ids


def beside_masks(config: PreTrainedConfig, ids: torch.Tensor) -> torch.Tensor | None:
    """Return tokens, ``[2, 8]``, with the one for masks in every second place; None without one of its own.

    A model may count them; padding moves positions in some models, which is no neighbour's doing.
    """
    mask, padding = (getattr(config, f"{kind}_token_id", None) for kind in ("mask", "pad"))
    if not isinstance(mask, int) or mask == padding or not 0 <= mask < _vocabulary(config):
        return None
    return torch.where(torch.arange(SEQ)[None] % 2 == 0, torch.full_like(ids, mask), ids)


def padding_mask() -> torch.Tensor:
    """Return an attention mask that pads some positions on the left, ``[2, 8]``."""
    mask = torch.ones(BATCH, SEQ, dtype=torch.long)
    mask[0, : SEQ // 2] = mask[1, :1] = 0
    return mask


def mirrored(tensor: torch.Tensor) -> torch.Tensor:
    """Reverse batch and sequence: with an even length no token keeps its position."""
    return tensor.flip(0, 1)


def neighbours_changed(tensor: torch.Tensor) -> torch.Tensor:
    """Swap the two sequences at every second position: every token keeps its position, and loses its neighbours."""
    even = torch.arange(SEQ)[None, :] % 2 == 0
    return torch.where(even.view(1, SEQ, *[1] * (tensor.dim() - 2)), tensor.flip(0), tensor)


def same_rows(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors differ by no more than the rounding of a matrix product."""
    if not one.numel():
        return one.shape == other.shape
    scale = one.abs().max()
    return bool((one - other).abs().max() <= ROW_TOLERANCE * scale)


def is_constant(rows: torch.Tensor) -> bool:
    """Return whether all positions of ``[batch, seq, ...]`` rows hold the same."""
    return same_rows(rows, rows[:1, :1].expand_as(rows))


def are_rows(tensor: torch.Tensor | None) -> bool:
    """Return whether a module's output has one row of values for each of the experiment's tokens."""
    if tensor is None or not tensor.is_floating_point():
        return False
    return tensor.dim() >= 3 and tensor.shape[:2] == (BATCH, SEQ)


def follows_tokens(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Return whether rows of a mirrored pass moved with their tokens, and are not merely the same for all."""
    if one is None or other is None or not are_rows(one) or one.shape != other.shape:
        return False
    return not is_constant(one) and same_rows(one, mirrored(other))
