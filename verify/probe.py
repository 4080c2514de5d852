"""Measure one checkpoint in a process of its own, loaded as a user loads it.

Run as ``python -m prefold.verify.probe FOLDER``. This process never imports ``prefold.runtime``: a folded
checkpoint must run on the module that lies in its own folder.
"""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers import logging as transformers_logging

from prefold.convert.cut import Column, Cut
from prefold.convert.folded import circumstances
from prefold.convert.meter import metered
from prefold.convert.section import read_cut
from prefold.convert.source import open_folder
from prefold.convert.table import compute_rows
from prefold.verify.job import READ_BATCHES, TOP, Job, save_figures

_PAD = 0
_ROWS_AT_ONCE = 512
# Relative, and absolute as part of a column's largest value: torch.testing's for wide types; for 16 bits one unit in
# the last place, which a product takes that sums in another order (seen in 3e-4 of the values of one-row products).
_ROUNDING = {torch.float64: (1e-7, 1e-7), torch.float32: (1.3e-6, 1e-5), torch.float16: (0, 2**-10)}
_SPEED_TOKENS, _SPEED_ROUNDS = 32, 7


def load(folder: str, job: Job) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a checkpoint; returns the model and what transformers says of its keys."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, job.dtype),
        trust_remote_code=job.trust_remote_code,
        output_loading_info=True,
        use_safetensors=True,
    )
    model, info = loaded
    model.generation_config = GenerationConfig()  # its own may sample, penalize or stop early; it is checked as a file
    keys = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return model.eval(), {**keys, "class": type(model).__name__, "module": type(model).__module__}


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of prompts padded on the left, and its attention mask, both ``[batch, seq]``."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[_PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@torch.no_grad()
def greedy(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue greedily by cached steps; returns tokens ``[batch, new]`` and their logits ``[batch, new, vocab]``."""
    made = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=_PAD,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[:, ids.shape[1] :], torch.stack(made.logits, 1).float()


@torch.no_grad()
def measure_outputs(model: PreTrainedModel, job: Job) -> dict[str, torch.Tensor]:
    """Collect logits of a prefill, of cached steps and of a left-padded batch, and greedy tokens of all prompts."""
    first = torch.tensor([job.prompts[0]])
    tokens, step = greedy(model, first, torch.ones_like(first), job.new_tokens)
    continued = torch.tensor([job.continued]) if job.continued else torch.cat([first, tokens], 1)
    prefill = model(input_ids=continued).logits[0].float()
    ids, mask = left_padded(job.prompts)
    padded = model(input_ids=ids, attention_mask=mask).logits.float()[mask == 1]
    batch_tokens, batch_step = greedy(model, ids, mask, job.new_tokens)
    return {
        "continued": continued[0],
        "prefill": prefill,
        "step": step[0],
        "padded": padded,
        "tokens": torch.cat([tokens, batch_tokens]),
        "top": torch.cat([step, batch_step]).topk(TOP, dim=-1).indices,
    }


def measure_reads(model: PreTrainedModel) -> dict[str, int]:
    """Count the bytes of parameters that one decode step touches, per batch size."""
    vocabulary = model.config.get_text_config().vocab_size
    reads = {}
    for batch in READ_BATCHES:
        ids = torch.arange(batch).remainder(vocabulary).view(batch, 1)
        with metered(model) as meter:
            model(input_ids=ids, use_cache=False)
        reads[str(batch)] = meter.total
    return reads


def _worst(column: Column, stored: torch.Tensor, live: torch.Tensor) -> float:
    part = slice(column.start, column.start + column.width)
    return float((stored[:, part].double() - live[:, part].double()).abs().nan_to_num(torch.inf).max())


def _is_close(column: Column, stored: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Say of every row whether it is within the rounding of its dtype.

    The absolute part, for values that nearly cancel, is taken of the largest value that the column has for the token.
    """
    rtol, atol = _ROUNDING.get(stored.dtype, (0, 2**-7))
    part = slice(column.start, column.start + column.width)
    got, expected = stored[:, part].double(), live[:, part].double()
    scale = expected.abs().amax(1, keepdim=True)
    return (got - expected).abs().le(atol * scale + rtol * expected.abs()).all(1)


def measure_rows(model: PreTrainedModel, cut: Cut, table: Any, chunk_tokens: int) -> dict[str, Any]:
    """Compare every row of a table with the live first layer of the source model.

    As many rows are run at once as when the table was made: how a product rounds may depend on that.
    """
    columns = [cut.residual, *cut.columns]
    worst = dict.fromkeys([column.module for column in columns], 0.0)
    unequal, beyond, infinite = list[int](), list[int](), list[int]()
    for start in range(0, cut.rows, chunk_tokens):
        stored = table[start : start + chunk_tokens]
        live = compute_rows(model, cut, torch.arange(start, start + len(stored))[:, None])[:, 0]
        finite = (stored.isfinite() & live.isfinite()).all(1)
        infinite += (start + (~finite).nonzero().flatten()).tolist()
        unequal += (start + stored.ne(live).any(1).nonzero().flatten()).tolist()
        close = torch.stack([_is_close(column, stored, live) for column in columns]).all(0)
        beyond += (start + (~close).nonzero().flatten()).tolist()
        for column in columns:
            worst[column.module] = max(worst[column.module], _worst(column, stored, live))
    counts = {"rows": cut.rows, "unequal": len(unequal), "beyond_rounding": len(beyond), "not_finite": len(infinite)}
    first = {"first_unequal": unequal[:5], "first_beyond_rounding": beyond[:5], "first_not_finite": infinite[:5]}
    return counts | first | {"max_abs_difference": worst}


def compare_table(model: PreTrainedModel, folder: Path, name: str) -> dict[str, Any]:
    """Open the table of a folded checkpoint and compare its rows with ``model``, its source."""
    folded = open_folder(folder)
    cut = read_cut(folded.config)
    made = folded.config["prefold"].get("computed", {})
    chunk_tokens = made.get("chunk_tokens", _ROWS_AT_ONCE)
    with safe_open(folded.entries[name].file, framework="pt") as file:
        found = measure_rows(model, cut, file.get_slice(name), chunk_tokens)
    return found | {"same_circumstances": made == circumstances("cpu", chunk_tokens)}


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
        folded, _ = load(job.speed_against, replace(job, trust_remote_code=True))
        figures["speed"] = measure_speed(model, folded, job.prompts[0])
    else:
        figures["reads"] = measure_reads(model)
        save_file(measure_outputs(model, job), folder / "outputs.safetensors")
        if job.table_folder:
            figures["rows"] = compare_table(model, Path(job.table_folder), job.table_name)
    save_figures(folder, figures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
