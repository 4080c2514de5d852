"""Measure one checkpoint in a process of its own, loaded as a user loads it.

Run as ``python -m prefold.verify.probe FOLDER``. This process never imports ``prefold.runtime``: a folded
checkpoint must run on the module that lies in its own folder.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers import logging as transformers_logging

from prefold.convert.adapter import merge_adapter
from prefold.convert.cut import Cut
from prefold.convert.folded import circumstances
from prefold.convert.linear import Linear
from prefold.convert.section import read_cuts
from prefold.convert.sides import accepted, encoder_output, whole_inputs
from prefold.convert.source import open_folder
from prefold.convert.table import added_tensors, compute_rows
from prefold.verify.job import TOP, Job, save_figures
from prefold.verify.metering import measure_folded, measure_reads

_PAD = 0
_ROWS_AT_ONCE = 512
# Random texts, and their length: positions enough for a mean error to settle within a few per cent, and no more values
# of what is said than fit well into memory.
_TEXTS, _TEXT_LENGTH, _TEXT_VALUES = 16, 64, 1 << 25
# Tokens that the decoder of an encoder-decoder is given beside a padded batch.
_DECODED = 6
# Relative, and absolute as part of a column's largest value: torch.testing's for wide types; for 16 bits one unit in
# the last place, which a product takes that sums in another order (seen in 3e-4 of the values of one-row products).
_ROUNDING = {torch.float64: (1e-7, 1e-7), torch.float32: (1.3e-6, 1e-5), torch.float16: (0, 2**-10)}
_SPEED_TOKENS, _SPEED_ROUNDS = 32, 7


def load(folder: str, job: Job) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a checkpoint; returns the model and what transformers says of its keys."""
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
    """Return what a model is given to continue: tokens, for an encoder or a decoder, or an encoder's output."""
    if not model.config.is_encoder_decoder or model.main_input_name == "input_ids":
        return {"input_ids": ids, "attention_mask": mask}
    start = torch.full((len(ids), 1), model.generation_config.decoder_start_token_id)
    return {"encoder_outputs": encoder_output(model, len(ids)), "decoder_input_ids": start}


@torch.no_grad()
def greedy(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue greedily by cached steps; returns all tokens ``[batch, seq]`` and the new ones' logits.

    The logits are ``[batch, new, vocab]``. A class that generates in a way of its own, as one for sounds, is not
    asked to.
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


def _said(output: Any) -> torch.Tensor:
    """Return what a pass says: logits, or hidden states where the model has no head."""
    said: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return said


@torch.no_grad()
def measure_outputs(model: PreTrainedModel, job: Job) -> dict[str, torch.Tensor]:
    """Collect what a prefill and a left-padded batch say, and what cached steps say, where there are such."""
    first = torch.tensor([job.prompts[0]])
    ids, mask = left_padded(job.prompts)
    steps = _measure_steps(model, job, first, ids, mask) if model.can_generate() else {"continued": first[0]}
    continued = torch.tensor([job.continued]) if job.continued else steps["continued"][None]
    return steps | {
        "prefill": _said(model(**_forward(model, first, torch.ones_like(first), continued)))[0],
        "padded": _padded(model, ids, mask),
        **({"text": _text(model, job.longest)} if job.with_text else {}),
    }


@torch.no_grad()
def _text(model: PreTrainedModel, longest: int) -> torch.Tensor:
    """Return what is said of many random tokens, ``[positions, ...]``: enough for a mean error to settle."""
    length, vocabulary = min(longest, _TEXT_LENGTH), model.config.get_text_config().vocab_size
    texts = max(1, min(_TEXTS, _TEXT_VALUES // (length * vocabulary)))
    ids = torch.randint(vocabulary, (texts, length), generator=torch.Generator().manual_seed(1))
    return _said(model(**whole_inputs(model, ids))).flatten(0, -2)


def _forward(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, continued: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of a pass over ``continued``; a decoder says it behind an encoder that read ``ids``."""
    if not model.config.is_encoder_decoder:
        return accepted(model, {"input_ids": continued, "attention_mask": torch.ones_like(continued)})
    return accepted(model, _read(model, ids, mask) | {"decoder_input_ids": continued})


@torch.no_grad()
def _padded(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what a padded batch says where it is not padded, ``[positions, ...]``; of an encoder-decoder, all."""
    if not model.config.is_encoder_decoder:
        return _said(model(**accepted(model, {"input_ids": ids, "attention_mask": mask})))[mask == 1]
    decoded = ids.flip(0)[:, -_DECODED:]
    return _said(model(**accepted(model, _read(model, ids, mask) | {"decoder_input_ids": decoded}))).flatten(0, 1)


def _measure_steps(
    model: PreTrainedModel, job: Job, first: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    new = job.new_tokens
    sequence, step = greedy(model, first, torch.ones_like(first), new)
    batch_sequence, batch_step = greedy(model, ids, mask, new)
    best = torch.cat([step, batch_step]).float().topk(TOP, dim=-1)
    return {
        "continued": sequence[0],
        "step": step[0],
        "tokens": torch.cat([sequence[:, -new:], batch_sequence[:, -new:]]),
        "top": best.indices,
        "margin": best.values[..., 0] - best.values[..., 1],
    }


def _is_close(stored: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Say of every row of a column whether it is within the rounding of its dtype.

    The absolute part, for values that nearly cancel, is taken of the largest value that the column has for the token.
    """
    rtol, atol = _ROUNDING.get(stored.dtype, (0, 2**-7))
    got, expected = stored.double(), live.double()
    scale = expected.abs().amax(1, keepdim=True)
    return (got - expected).abs().le(atol * scale + rtol * expected.abs()).all(1)


@dataclass
class RowCount:
    """What a comparison of rows has found so far.

    Attributes:
        rows: compared.
        unequal: numbers of those that differ.
        beyond: numbers of those that differ by more than the rounding of a matrix product.
        infinite: numbers of those that are not finite.
        worst: the largest difference, by what was compared.
    """

    rows: int = 0
    unequal: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    infinite: list[int] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)

    def compare(self, start: int, stored: torch.Tensor, live: torch.Tensor, columns: dict[str, slice]) -> None:
        """Compare ``[rows, width]``, the first of which is number ``start``, column by column."""
        self.rows += len(stored)
        finite = (stored.isfinite() & live.isfinite()).all(1)
        self.infinite += (start + (~finite).nonzero().flatten()).tolist()
        self.unequal += (start + stored.ne(live).any(1).nonzero().flatten()).tolist()
        close = torch.stack([_is_close(stored[:, part], live[:, part]) for part in columns.values()]).all(0)
        self.beyond += (start + (~close).nonzero().flatten()).tolist()
        for name, part in columns.items():
            apart = (stored[:, part].double() - live[:, part].double()).abs().nan_to_num(torch.inf)
            self.worst[name] = max(self.worst.get(name, 0.0), float(apart.max()))

    def figures(self) -> dict[str, Any]:
        """Return the counts, and the first rows of each kind."""
        counts = {"unequal": self.unequal, "beyond_rounding": self.beyond, "not_finite": self.infinite}
        first = {f"first_{name}": numbers[:5] for name, numbers in counts.items()}
        told = {name: len(numbers) for name, numbers in counts.items()}
        return {"rows": self.rows} | told | first | {"max_abs_difference": self.worst}


def measure_rows(model: PreTrainedModel, cut: Cut, table: Any, chunk_tokens: int, count: RowCount) -> None:
    """Compare every row of a table with the live first layer of the source model.

    As many rows are run at once as when the table was made: how a product rounds may depend on that.
    """
    linear = Linear(model, cut, cut.sum) if cut.sum else None
    columns = {column.module: slice(column.start, column.start + column.width) for column in cut.stored}
    for start in range(0, cut.rows, chunk_tokens):
        stored = table[start : start + chunk_tokens]
        live = compute_rows(model, cut, torch.arange(start, start + len(stored))[:, None])[:, 0]
        if linear and cut.sum:
            live = torch.cat([live, linear.token_parts(live[:, columns[cut.sum.token]]).to(live.dtype)], dim=1)
        count.compare(start, stored, live, columns)


def compare_tables(model: PreTrainedModel, folder: Path, made: dict[str, str]) -> dict[str, Any]:
    """Open what a folded checkpoint has computed and compare it with ``model``, its source."""
    folded = open_folder(folder)
    cuts = read_cuts(folded.config)
    said = folded.config["prefold"].get("computed", {})
    chunks = said.get("chunk_tokens", [_ROWS_AT_ONCE] * len(cuts))
    count = RowCount()
    for cut, chunk_tokens in zip(cuts, chunks, strict=True):
        name = made[f"{cut.embedding}.weight"]
        with safe_open(folded.entries[name].file, framework="pt") as file:
            measure_rows(model, cut, file.get_slice(name), chunk_tokens, count)
            for parameter, live in added_tensors(model, cut, model.dtype):
                stored = file.get_tensor(made[parameter])
                count.compare(0, stored, live, {parameter: slice(None)})
    return count.figures() | {"same_circumstances": said == circumstances("cpu", chunks)}


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


def main(folder: Path) -> None:
    """Do the job that lies in ``folder`` and leave the answers there."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    job = Job.load(folder)
    model, loading = load(job.folder, job)
    figures: dict[str, Any] = {"loading": loading}
    if job.speed_against:
        folded, _ = load(job.speed_against, replace(job, trust_remote_code=True, adapter=job.adapter_against))
        figures["speed"] = measure_speed(model, folded, job.prompts[0])
    else:
        save_file(measure_outputs(model, job), folder / "outputs.safetensors")  # some weights are unpacked by a pass
        meters = {} if job.only_outputs else measure_reads(model)
        figures["reads"] = {batch: meter.total for batch, meter in meters.items()}
        if job.table_folder:
            figures["rows"] = compare_tables(model, Path(job.table_folder), job.made)
            # The last: asked for its state, a model whose weights are packed may unpack them.
            cuts = read_cuts(open_folder(Path(job.table_folder)).config)
            figures["folded"] = measure_folded(model, cuts, meters)
    save_figures(folder, figures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
