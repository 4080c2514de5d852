"""Measure one checkpoint, loaded as a user loads it, in a process that has seen no other.

That process never imports ``prefold.runtime``: a folded checkpoint must run on the module that lies in its own folder.
"""

from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import logging as transformers_logging

from prefold.convert import merge_adapter
from prefold.convert.checkpoint import open_folder
from prefold.convert.fold import read_cuts
from prefold.convert.model import accepted, encoder_output, whole_inputs
from prefold.verify.probe.apart import sketches
from prefold.verify.probe.job import OUTPUT_VALUES, TOP, Job
from prefold.verify.probe.metering import measure_folded, measure_reads
from prefold.verify.probe.rows import compare_tables
from prefold.verify.probe.text import measure_text

_PAD = 0
# Random texts, and their length: positions enough for a mean error to settle within a few per cent.
_TEXTS, _TEXT_LENGTH = 16, 64
# Tokens that the decoder of an encoder-decoder is given beside a padded batch.
_DECODED = 6
_SPEED_TOKENS, _SPEED_ROUNDS = 32, 7


def load(folder: str, job: Job) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a checkpoint; returns the model and transformers' lists of wrong keys."""
    loaded: Any = getattr(transformers, job.auto_class).from_pretrained(
        folder,
        dtype=getattr(torch, job.dtype),
        trust_remote_code=job.trust_remote_code,
        output_loading_info=True,
        use_safetensors=True,
    )
    model, info = loaded
    if job.adapter:
        model = merge_adapter(model, Path(job.adapter))
    # Its own may sample, penalize or stop early; it is checked as a file.
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(decoder_start_token_id=_PAD if start is None else start)
    keys = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return model.eval(), {**keys, "class": type(model).__name__, "module": type(model).__module__}


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of prompts padded on the left, and its attention mask, both ``[batch, seq]``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[_PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def _read(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
    """Return the inputs that a model continues: tokens, or an encoder's output."""
    if not model.config.is_encoder_decoder or model.main_input_name == "input_ids":
        return {"input_ids": ids, "attention_mask": mask}
    start = torch.full((len(ids), 1), model.generation_config.decoder_start_token_id)
    return {"encoder_outputs": encoder_output(model, len(ids)), "decoder_input_ids": start}


@torch.no_grad()
def greedy(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue greedily by cached steps; returns all tokens ``[batch, seq]`` and the new ones' logits.

    The logits are ``[batch, new, vocab]``. A class's own way to generate, as for sounds, is not used.
    """
    generate: Any = GenerationMixin.generate
    made = generate(
        model,
        **_read(model, ids, mask),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=_PAD,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences, torch.stack(made.logits, 1)


def _outputs(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """Return logits, ``[batch, seq, values, ...]``, heads side by side; hidden states where no token has its own."""
    output: Any = model(**inputs)
    tokens = inputs["decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"]
    found = [each for name, each in output.items() if name.endswith("logits")]
    if found and found[0].shape[:2] != tokens.shape:
        output = model(**inputs, output_hidden_states=True)
        hidden = output.get("decoder_hidden_states", output.get("hidden_states"))
        return hidden[-1]  # type: ignore[no-any-return]
    alike = [each for each in found if each.shape == found[0].shape] or [output.last_hidden_state]
    outputs = torch.stack(alike, -1) if len(alike) > 1 else alike[0]
    return outputs if outputs.dim() > 2 else outputs[..., None]  # a discriminator has one logit of a token


@torch.no_grad()
def measure_outputs(model: PreTrainedModel, job: Job) -> dict[str, torch.Tensor]:
    """Collect the outputs of a prefill, of a left-padded batch, and of cached steps, where there are such."""
    first = torch.tensor([job.prompts[0]])
    ids, mask = left_padded(job.prompts)
    by_steps = model.can_generate() and not job.only_outputs  # of a third model its pass over the same text is enough
    steps = _measure_steps(model, job, first, ids, mask) if by_steps else {"continued": first[0]}
    continued = torch.tensor([job.continued]) if job.continued else steps["continued"][None]
    return steps | {
        "prefill": _outputs(model, _forward(model, first, torch.ones_like(first), continued))[0],
        "padded": _padded(model, ids, mask),
        **({"text": _text(model, job.longest)} if job.with_text else {}),
        **({"passages": _passages(model, job.passages)} if job.passages else {}),
    }


@torch.no_grad()
def _text(model: PreTrainedModel, longest: int) -> torch.Tensor:
    """Return the outputs for many random tokens, ``[positions, ...]``: enough for a mean error to settle."""
    length, vocabulary = min(longest, _TEXT_LENGTH), model.config.get_text_config().vocab_size
    texts = max(1, min(_TEXTS, OUTPUT_VALUES // (length * vocabulary)))
    ids = torch.randint(vocabulary, (texts, length), generator=torch.Generator().manual_seed(1))
    return _outputs(model, whole_inputs(model, ids)).flatten(0, -2)


@torch.no_grad()
def _passages(model: PreTrainedModel, passages: list[list[int]]) -> torch.Tensor:
    """Return the outputs for texts, one after the other, ``[positions, ...]``."""
    outputs = [_outputs(model, whole_inputs(model, torch.tensor([ids]))) for ids in passages]
    return torch.cat([each.flatten(0, -2) for each in outputs])


def _forward(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, continued: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of a pass over ``continued``; a decoder runs behind an encoder that read ``ids``."""
    if not model.config.is_encoder_decoder:
        return accepted(model, {"input_ids": continued, "attention_mask": torch.ones_like(continued)})
    return accepted(model, _read(model, ids, mask) | {"decoder_input_ids": continued})


@torch.no_grad()
def _padded(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return a padded batch's outputs where it is not padded, ``[positions, ...]``; all, where these are not its own.

    An encoder-decoder returns others, and a model that pools its positions.
    """
    if not model.config.is_encoder_decoder:
        output = _outputs(model, accepted(model, {"input_ids": ids, "attention_mask": mask}))
        return output[mask == 1] if output.shape[:2] == mask.shape else output.flatten(0, 1)
    decoded = ids.flip(0)[:, -_DECODED:]
    return _outputs(model, accepted(model, _read(model, ids, mask) | {"decoder_input_ids": decoded})).flatten(0, 1)


def _measure_steps(
    model: PreTrainedModel, job: Job, first: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    new = job.new_tokens
    sequence, step = greedy(model, first, torch.ones_like(first), new)
    batch_sequence, batch_step = greedy(model, ids, mask, new)
    best = torch.cat([step, batch_step]).float().topk(min(TOP, step.shape[-1]), dim=-1)
    return {
        "continued": sequence[0],
        "step": step[0],
        "tokens": torch.cat([sequence[:, -new:], batch_sequence[:, -new:]]),
        "top": best.indices,
        "margin": best.values[..., 0] - best.values[..., 1],
    }


@torch.no_grad()
def _tokens_per_second(model: PreTrainedModel, prompt: list[int]) -> float:
    ids = torch.tensor([prompt])
    begun = perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=_SPEED_TOKENS,  # type: ignore[operator]
                   min_new_tokens=_SPEED_TOKENS, do_sample=False, pad_token_id=_PAD)  # fmt: skip
    return _SPEED_TOKENS / (perf_counter() - begun)


def measure_speed(source: PreTrainedModel, folded: PreTrainedModel, prompt: list[int]) -> dict[str, Any]:
    """Time both models in turn, so that a machine that slows down slows both."""
    for model in (source, folded):
        _tokens_per_second(model, prompt)
    pairs = [(_tokens_per_second(source, prompt), _tokens_per_second(folded, prompt)) for _ in range(_SPEED_ROUNDS)]
    return {
        "source_tokens_per_second": median(before for before, _ in pairs),
        "folded_tokens_per_second": median(after for _, after in pairs),
        "ratio": median(after / before for before, after in pairs),
    }


def measured(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Do a job; returns figures, and the model's outputs by name."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, loading = load(job.folder, job)
    figures: dict[str, Any] = {"loading": loading}
    if job.tokenize is not None:
        figures["text"] = measure_text(job.folder, trust_remote_code=job.tokenize)
    if job.speed_against:
        folded, _ = load(job.speed_against, replace(job, trust_remote_code=True, adapter=job.adapter_against))
        return figures | {"speed": measure_speed(model, folded, job.prompts[0])}, {}
    if job.only_modules:
        return figures | {"modules": sketches(model, whole_inputs(model, torch.tensor([job.prompts[0]])))}, {}
    outputs = measure_outputs(model, job)  # some weights are unpacked by a pass
    meters = {} if job.only_outputs else measure_reads(model, job.length)
    figures["reads"] = {batch: meter.total for batch, meter in meters.items()}
    if job.table_folder:
        figures["rows"] = compare_tables(model, Path(job.table_folder), job.made)
        # The last: asked for its state, a model whose weights are packed may unpack them.
        cuts = read_cuts(open_folder(Path(job.table_folder)).config)
        figures["folded"] = measure_folded(model, cuts, meters)
    return figures, outputs
