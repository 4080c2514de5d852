"""Train the demo checkpoint: a small GPT-NeoX model of one public-domain book.

Run as ``python -m benchmarks.demo.train --out demo``; with other layers it has the same tokenizer.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from benchmarks.demo.corpus import BLOCK_CHARS, HELD_OUT_EVERY, Corpus, DemoError, load_corpus, shared_runs
from benchmarks.demo.network import (
    CONTEXT,
    DECAY,
    DROPOUT,
    LAYERS,
    PEAK_RATE,
    STEP_TOKENS,
    VOCAB,
    WARMUP,
    encode_blocks,
    new_model,
    train_model,
    train_tokenizer,
)
from benchmarks.demo.perplexity import Score, score_blocks

__all__ = ["main"]

PROMPT, SAMPLE_TOKENS = "The king said to the old man,", 80
LICENSE = """\
The model weights, the configuration and the tokenizer in this folder are dedicated to the public
domain under CC0 1.0 Universal (SPDX: CC0-1.0).

To the extent possible under law, the authors have waived all copyright and related or neighbouring
rights to them. Full text: https://creativecommons.org/publicdomain/zero/1.0/legalcode
"""


@dataclass(frozen=True)
class Outcome:
    """What the model card reports: tokens trained on, optimizer steps, seed, the two scores, one sample."""

    train_tokens: int
    steps: int
    seed: int
    held_out: Score
    excerpt: Score
    sample: str


def save_checkpoint(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the weights in bfloat16, the tokenizer, the generation defaults and the licence."""
    defaults = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.generation_config = defaults
    model.bfloat16().save_pretrained(folder)
    # The weights are created readable by their owner alone, which a wheel would pass on.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    # Every version of transformers knows the class by this name, older ones by no other.
    kept = json.loads(settings.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    (folder / "LICENSE").write_text(LICENSE, "utf-8")


def greedy_sample(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what the model writes after PROMPT, at most SAMPLE_TOKENS tokens."""
    prompt = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=SAMPLE_TOKENS, do_sample=False)  # type: ignore[misc]
    return str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def judge_checkpoint(folder: Path, corpus: Corpus, train: Tensor, steps: int, seed: int) -> Outcome:
    """Return the figures of the checkpoint as read back from disk, train being tokens of shape [tokens]."""
    # Loading leaves the model in evaluation mode.
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))
    blocks = encode_blocks(tokenizer, corpus.held_out)
    everything, excerpt = (score_blocks(model, train, some) for some in (blocks, blocks[:1]))
    return Outcome(len(train), steps, seed, everything, excerpt, greedy_sample(model, tokenizer))


def data_fields(corpus: Corpus) -> dict[str, object]:
    """Return what the card says about the text."""
    return {
        "source": corpus.source,
        "rights": corpus.rights,
        "blocks": len(corpus.train) + len(corpus.held_out),
        "block_chars": BLOCK_CHARS,
        "every": HELD_OUT_EVERY,
        "train_blocks": len(corpus.train),
        "held_blocks": len(corpus.held_out),
        "overlap": f"{shared_runs(corpus):.1f}",
    }


def model_fields(model: GPTNeoXForCausalLM) -> dict[str, object]:
    """Return what the card says about the architecture and the optimizer."""
    config = model.config
    return {
        "parameters": f"{model.num_parameters():,}",
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "intermediate": config.intermediate_size,
        "rotary": config.rope_parameters["partial_rotary_factor"],  # type: ignore[index]
        "context": CONTEXT,
        "half_context": CONTEXT // 2,
        "vocab": VOCAB,
        "step_tokens": STEP_TOKENS,
        "rate": PEAK_RATE,
        "warmup": WARMUP,
        "decay": DECAY,
        "dropout": DROPOUT,
    }


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """Return what the card says about this run and its results."""
    seen = outcome.steps * STEP_TOKENS
    return {
        "train_tokens": f"{outcome.train_tokens:,}",
        "steps": outcome.steps,
        "seed": outcome.seed,
        "seen": f"{seen:,}",
        "epochs": f"{seen / outcome.train_tokens:.1f}",
        "held_tokens": f"{outcome.held_out.tokens:,}",
        "held_model": f"{outcome.held_out.model:.2f}",
        "held_unigram": f"{outcome.held_out.unigram:.2f}",
        "excerpt_tokens": f"{outcome.excerpt.tokens:,}",
        "excerpt_model": f"{outcome.excerpt.model:.2f}",
        "excerpt_unigram": f"{outcome.excerpt.unigram:.2f}",
        "prompt": PROMPT,
        "sample": outcome.sample.rstrip().replace("\n", "\n> ").replace("> \n", ">\n"),
    }


def write_card(folder: Path, corpus: Corpus, model: GPTNeoXForCausalLM, outcome: Outcome) -> None:
    """Fill the card template in and write it as README.md."""
    template = Template(Path(__file__).with_name("card_template.md").read_text("utf-8"))
    fields = data_fields(corpus) | model_fields(model) | outcome_fields(outcome)
    (folder / "README.md").write_text(template.substitute(fields), "utf-8")


def build(out: Path, text: Path | None, steps: int, seed: int, console: Console, *, layers: int = LAYERS) -> Outcome:
    """Train and write everything under the folder, and return the figures."""
    corpus = load_corpus(text)
    checkpoint = out / "checkpoint"
    checkpoint.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus.train)
    stream = torch.cat(encode_blocks(tokenizer, corpus.train))
    torch.manual_seed(seed)
    model = new_model(layers)
    train_model(model, stream, steps, seed, console)
    save_checkpoint(model, tokenizer, checkpoint)
    outcome = judge_checkpoint(checkpoint, corpus, stream, steps, seed)
    (out / "held_out.txt").write_text(corpus.held_out[0], "utf-8")
    write_card(checkpoint, corpus, model, outcome)
    return outcome


def main(
    out: Annotated[Path, typer.Option(help="Folder to write checkpoint/ and held_out.txt to.")],
    text: Annotated[Path | None, typer.Option(help="Text file to read in place of the package.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of 4096 tokens each.")] = 1800,
    seed: Annotated[int, typer.Option(help="Seed of weights, dropout and window order.")] = 0,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the model.")] = LAYERS,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 leaves it to PyTorch.")] = 0,
) -> None:
    """Train the demo checkpoint and write it with its card and a held-out excerpt."""
    console = Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    try:
        outcome = build(out, text, steps, seed, console, layers=layers)
    except DemoError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    score = outcome.held_out
    console.print(f"held-out perplexity {score.model:.2f}; unigram {score.unigram:.2f}")


if __name__ == "__main__":
    typer.run(main)
