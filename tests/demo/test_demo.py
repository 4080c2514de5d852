"""The checkpoint that comes with prefold, and what `prefold demo` says of it."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.demo.perplexity import unigram_losses
from prefold.cli.main import main
from prefold.convert.fold.first_layer import quiet_loading
from prefold.demo import CHECKPOINT, HELD_OUT
from prefold.demo.sample import sample
from prefold.verify.checks import CHECKS
from tests.conftest import load


def test_the_checkpoint_is_the_papers_best_case():
    config = load(CHECKPOINT).config
    assert (config.num_hidden_layers, config.use_parallel_residual, config.dtype) == (4, True, torch.bfloat16)


def test_it_has_learnt_something():
    """Held-out perplexity is at most half of a unigram model's, also one that was fitted on the excerpt itself."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, model_max_length=1 << 30)
    ids = tokenizer(HELD_OUT.read_text("utf-8"), return_tensors="pt")["input_ids"][0]
    unigram = math.exp(float(unigram_losses(ids, 2048)[ids[1:]].mean()))
    with quiet_loading():
        assert sample(CHECKPOINT).perplexity <= unigram / 2


def test_its_card_states_both_perplexities():
    card = (CHECKPOINT / "README.md").read_text()
    model, unigram = (float(n) for n in re.findall(r"all held-out[^|]*\|[^|]*\|\D*([\d.]+)\D+([\d.]+)", card)[0])
    assert model <= unigram / 2


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    """Run the demo once, with its output kept."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("demo") / "out"
    said = io.StringIO()
    arguments, sys.argv = sys.argv, ["prefold", "demo", str(out), "--json"]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main()
    sys.argv = arguments
    return json.loads(said.getvalue()) | {"folder": out}


def test_the_demo_passes_every_check(told: dict):
    assert told["verification"]["passed"] is True
    assert set(told["verification"]["checks"]) == {*CHECKS, "speed"}
    assert told["verification"]["checks"]["logits"]["exact"] is True


def test_both_checkpoints_say_the_same(told: dict):
    assert told["source"] == told["folded"]
    assert Path(told["folder"] / "modeling_prefold.py").exists()
