"""Speculative decoding: a folded model drafts, is drafted for, and lends its embedding to a draft."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.predictors import add_predictor
from tests.vllm.checkpoints import CUTS, SHAPES, fold, save
from tests.vllm.engines import answers, engine, say, tokens

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.mark.parametrize(("target", "draft"), [("source", "folded"), ("folded", "source"), ("folded", "folded")])
def test_a_draft_model(llama, said, checkpoint, target, draft):
    asked = {"method": "draft_model", "model": str(checkpoint("draft") / draft), "num_speculative_tokens": 3}
    assert tokens(answers(llama / target, speculative_config=asked)) == said


def counted(llm):
    """Return how many tokens a draft proposed, and how many of them were right."""
    values = {each.name: each.value for each in llm.get_metrics() if hasattr(each, "value")}
    return [values[f"vllm:spec_decode_num_{each}_tokens"] for each in ("draft", "accepted")]


def test_a_draft_of_itself_is_accepted(llama, said):
    """A folded draft proposes what its source would: of itself every token is accepted."""
    asked = {"method": "draft_model", "model": str(llama / "folded"), "num_speculative_tokens": 3}
    with engine(llama / "source", speculative_config=asked, disable_log_stats=False) as llm:
        assert tokens(say(llm)) == said
        proposed, accepted = counted(llm)
    assert accepted >= 0.9 * proposed > 0


def eagle(source, out):
    """Write an EAGLE draft of one layer, the target's own first one, without an embedding and a head of its own."""
    out.mkdir()
    inside = {name.removeprefix("model."): each for name, each in load_file(source / "model.safetensors").items()}
    kept = {name: each for name, each in inside.items() if "layers.0." in name and "input_layernorm" not in name}
    kept["fc.weight"] = torch.cat([torch.eye(128)] * 2, 1)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    changes = {"architectures": ["EagleLlamaForCausalLM"], "num_hidden_layers": 1}
    (out / "config.json").write_text(json.dumps(config | changes))
    return {"method": "eagle", "model": str(out), "num_speculative_tokens": 3}


@pytest.mark.parametrize("eager", [True, False])
def test_a_draft_that_takes_its_targets_embedding(llama, said, tmp_path, eager):
    """It proposes for the folded target what it proposes for the source."""
    found, asked = {}, eagle(llama / "source", tmp_path / "eagle")
    for side in ("source", "folded"):
        options = {"speculative_config": asked, "disable_log_stats": False, "enforce_eager": eager}
        with engine(llama / side, **options) as llm:
            assert tokens(say(llm)) == said
            found[side] = counted(llm)
    assert found["folded"] == found["source"]
    assert found["source"][1] > 100


@pytest.fixture(scope="module", params=["glm4_moe", "ernie4_5_moe", "deepseek_v3"])
def predictor(request, tmp_path_factory) -> Path:
    """Return the folder of a model with a layer of multi-token prediction."""
    folder, shape = tmp_path_factory.mktemp(request.param), SHAPES[request.param]
    add_predictor(save(shape, folder / "source"), request.param, shape[1]["num_hidden_layers"])
    fold(folder / "source", folder / "folded", cut=CUTS.get(request.param, "auto"))
    return folder


@pytest.mark.parametrize("eager", [True, False])
def test_a_draft_in_the_checkpoint_itself(predictor, eager):
    """Its embedding is the row's residual: it proposes for the folded target what it proposes for the source."""
    asked, found = {"method": "mtp", "num_speculative_tokens": 1}, {}
    for side in ("source", "folded"):
        options = {"speculative_config": asked, "disable_log_stats": False, "enforce_eager": eager}
        with engine(predictor / side, **options) as llm:
            found[side] = tokens(say(llm)), counted(llm)
    assert found["folded"] == found["source"]
    assert found["source"][1][1] > 0


def test_a_draft_that_would_get_a_changed_embedding(checkpoint, llama, tmp_path):
    """Gemma 3 scales its embedding, and so are the rows; the draft knows nothing of it."""
    asked = eagle(llama / "source", tmp_path / "eagle")
    with (
        pytest.raises(ValueError, match="may take its target's embedding: the table has it scaled"),
        engine(checkpoint("gemma3") / "folded", speculative_config=asked),
    ):
        pass


def test_drafts_from_the_prompt(llama, said):
    asked = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    assert tokens(answers(llama / "folded", speculative_config=asked, apart=True)) == said
