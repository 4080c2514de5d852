"""What source and folded model are asked, per task: every check is a function of a model that returns logits."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedModel

from benchmarks.small import VOCABULARY

Check = Callable[[PreTrainedModel], torch.Tensor]
_LENGTH = 12
_MANY = 48
_NEW_TOKENS = 8
_FRAMES = 128


def checks_of(model: PreTrainedModel, task: str) -> dict[str, Check]:
    """Return the checks of a task that a model has a parameter for; a model without a decoder of its own is causal."""
    accepted = _accepted(model)
    if task == "seq2seq" and "decoder_input_ids" not in accepted:
        task = "causal"
    if getattr(model.config, "type_vocab_size", 2) < 2:
        accepted -= {"token_type_ids"}
    return {name: check for name, check in CHECKS[task].items() if name not in _NEEDED or _NEEDED[name] in accepted}


def asked(check: Check, model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of a check; a model that draws numbers draws the same ones every time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return check(model)


def first_logits(model: PreTrainedModel, task: str, seed: int = 0) -> torch.Tensor:
    """Return the logits of a batch of tokens; other seeds make other tokens."""

    def said(model: PreTrainedModel) -> torch.Tensor:
        ids = _tokens(2, seed)
        if task == "seq2seq" and "decoder_input_ids" in _accepted(model):
            return _logits(model, **_heard(model, 2), decoder_input_ids=ids)
        return _logits(model, input_ids=ids)

    return asked(said, model)


def depends_on_tokens(model: PreTrainedModel, task: str) -> bool:
    """Tell whether two batches of tokens have different logits."""
    return not torch.equal(first_logits(model, task), first_logits(model, task, seed=3))


def _accepted(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _logits(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _tokens(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (batch, _LENGTH), generator=torch.Generator().manual_seed(seed))


def _padding(left: bool) -> torch.Tensor:
    """Return the attention mask of three sequences, of which two are padded: ``[3, 12]``."""
    mask = torch.ones(3, _LENGTH, dtype=torch.long)
    mask[0, :5] = mask[1, :1] = 0
    return mask if left else mask.flip(1)


def _prefill(model: PreTrainedModel) -> torch.Tensor:
    return _logits(model, input_ids=_tokens(2))


def _text(model: PreTrainedModel) -> torch.Tensor:
    """Run so many tokens that a mean error settles."""
    return _logits(model, input_ids=_tokens(_MANY, seed=3))


def _vocabulary(model: PreTrainedModel) -> torch.Tensor:
    """Run all tokens at once, as when the table was made: no kernel has a reason to sum in another order."""
    return _logits(model, input_ids=torch.arange(VOCABULARY)[:, None])


def _left_padded(model: PreTrainedModel) -> torch.Tensor:
    return _padded(model, _padding(left=True))


def _right_padded(model: PreTrainedModel) -> torch.Tensor:
    return _padded(model, _padding(left=False))


def _padded(model: PreTrainedModel, mask: torch.Tensor) -> torch.Tensor:
    """Return the logits of what is not padding."""
    ids = _tokens(3).masked_fill(mask == 0, 0)
    return _logits(model, input_ids=ids, attention_mask=mask)[:, :_LENGTH][mask == 1]


def _token_types(model: PreTrainedModel) -> torch.Tensor:
    """Give all tokens the second type."""
    return _logits(model, input_ids=_tokens(2), token_type_ids=torch.ones(2, _LENGTH, dtype=torch.long))


def _positions(model: PreTrainedModel) -> torch.Tensor:
    return _logits(model, input_ids=_tokens(2), position_ids=_shifted(2))


def _shifted(batch: int) -> torch.Tensor:
    """Return positions that do not start at 0."""
    return (torch.arange(_LENGTH) + 1).expand(batch, _LENGTH)


class _Forced(LogitsProcessor):
    """Let generation take given tokens, whatever the model finds likely: a tie cannot part two runs."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -float("inf"))
        forced[:, self.tokens[self.step]] = 0
        self.step += 1
        return forced


def _continued(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of cached steps."""
    ids = _tokens(1)
    return _generated(model, input_ids=ids, attention_mask=torch.ones_like(ids))


def _generated(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    made = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=_NEW_TOKENS, do_sample=False, num_beams=1, pad_token_id=0, decoder_start_token_id=1,
        logits_processor=[_Forced(_tokens(1, seed=2)[0])], output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(made.logits, 1)


def _heard(model: PreTrainedModel, batch: int) -> dict[str, torch.Tensor]:
    """Return what an encoder reads: other tokens than the decoder's, or features of a sound."""
    if "input_ids" in _accepted(model):
        return {"input_ids": _tokens(batch, seed=1)}
    name = "input_values" if "input_values" in _accepted(model) else model.main_input_name
    # These are the same in any dtype, which random normal numbers are not.
    steps = torch.randint(-128, 129, (batch, *_sound(model, name)), generator=torch.Generator().manual_seed(1))
    return {name: steps / 64}


def _sound(model: PreTrainedModel, name: str) -> tuple[int, ...]:
    """Return the shape of a sound: samples, or as many frames as an encoder has positions for."""
    config = model.config
    if name == "input_values":
        return (1600,)
    bins = next((n for n in map(_bins, (config, getattr(config, "encoder_config", None))) if n), 16)
    if hasattr(config, "max_source_positions") and not hasattr(config, "input_feat_per_channel"):
        return bins, 2 * config.max_source_positions
    return _FRAMES, bins


def _bins(config: Any) -> int | None:
    names = ("num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def _both(model: PreTrainedModel) -> torch.Tensor:
    return _logits(model, **_heard(model, 2), decoder_input_ids=_tokens(2))


def _both_text(model: PreTrainedModel) -> torch.Tensor:
    """Run so many tokens that a mean error settles."""
    return _logits(model, **_heard(model, _MANY), decoder_input_ids=_tokens(_MANY, seed=3))


def _both_vocabulary(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(VOCABULARY)[:, None]
    heard = {"input_ids": ids} if "input_ids" in _accepted(model) else _heard(model, VOCABULARY)
    return _logits(model, **heard, decoder_input_ids=ids)


def _both_padded(model: PreTrainedModel) -> torch.Tensor:
    """Pad the encoder's tokens on the right and the decoder's on the left."""
    heard, mask = _heard(model, 3), _padding(left=True)
    if "input_ids" in heard:
        heard["attention_mask"] = _padding(left=False)
        heard["input_ids"] = heard["input_ids"].masked_fill(heard["attention_mask"] == 0, 0)
    ids = _tokens(3).masked_fill(mask == 0, 0)
    return _logits(model, **heard, decoder_input_ids=ids, decoder_attention_mask=mask)[mask == 1]


def _both_positions(model: PreTrainedModel) -> torch.Tensor:
    return _logits(model, **_heard(model, 2), decoder_input_ids=_tokens(2), decoder_position_ids=_shifted(2))


def _both_continued(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of a decoder's cached steps, after a few tokens that it is given."""
    return _generated(model, **_heard(model, 1), decoder_input_ids=_tokens(1)[:, :3])


CHECKS: dict[str, dict[str, Check]] = {
    "causal": {
        "vocabulary": _vocabulary,
        "prefill": _prefill,
        "text": _text,
        "cached steps": _continued,
        "left-padded batch": _left_padded,
        "token types": _token_types,
        "positions": _positions,
    },
    "masked": {
        "vocabulary": _vocabulary,
        "batch": _prefill,
        "text": _text,
        "right-padded batch": _right_padded,
        "token types": _token_types,
        "positions": _positions,
    },
    "seq2seq": {
        "vocabulary": _both_vocabulary,
        "forward": _both,
        "text": _both_text,
        "padded batch": _both_padded,
        "cached steps": _both_continued,
        "decoder positions": _both_positions,
    },
}
_NEEDED = {
    "token types": "token_type_ids",
    "positions": "position_ids",
    "padded batch": "decoder_attention_mask",
    "decoder positions": "decoder_position_ids",
}
