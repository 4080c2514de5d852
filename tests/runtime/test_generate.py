"""Every way to generate makes the source's tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation.candidate_generator import MTPCandidateGenerator

from prefold.convert import convert_checkpoint
from tests.conftest import load, random_model, small_config, tokens
from tests.predictors import add_predictor
from tests.runtime.pairs import Pair, generate, left_padded, make_pair

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "nucleus": {"do_sample": True, "top_p": 0.8, "temperature": 0.7},
    "beams": {"num_beams": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "mixtral", "gpt_neox"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)
def test_strategy_makes_the_sources_tokens(pair: Pair, options: dict[str, Any]) -> None:
    ids, mask = left_padded()
    made = generate(pair.folded, ids, mask, **options)
    assert torch.equal(made, generate(pair.source, ids, mask, **options))
    assert made[:, ids.shape[1] :].unique().numel() > 9


def test_samples_differ_between_seeds(pair: Pair) -> None:
    """Without this, a test that compares samples would compare nothing."""
    ids = tokens()
    torch.manual_seed(1)
    other = pair.folded.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=12)
    assert not torch.equal(generate(pair.folded, ids, do_sample=True), other)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A model that guesses otherwise than the target, so that guesses are taken back."""
    return make_pair(tmp_path_factory.mktemp("draft"), num_hidden_layers=1)


@pytest.mark.parametrize("roles", ["target", "draft", "both"])
def test_assisted_generation_makes_the_sources_greedy_tokens(pair: Pair, draft: Pair, roles: str) -> None:
    target = pair.source if roles == "draft" else pair.folded
    assistant = draft.source if roles == "target" else draft.folded
    ids = tokens(1)
    assert torch.equal(generate(target, ids, assistant_model=assistant), generate(pair.source, ids))


def test_folded_model_drafts_for_its_own_source(pair: Pair) -> None:
    ids = tokens(1)
    assert torch.equal(generate(pair.source, ids, assistant_model=pair.folded), generate(pair.source, ids))


def test_prompt_lookup_makes_the_sources_greedy_tokens(pair: Pair) -> None:
    ids = tokens(1, 4).repeat(1, 4)
    assert torch.equal(generate(pair.folded, ids, prompt_lookup_num_tokens=3), generate(pair.source, ids))


def test_multi_token_prediction_proposes_what_it_does_for_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layer lies in the target's own checkpoint, and its embedding is the target's: here the row's residual."""
    proposed = list[list[int]]()

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(self, *args, **kwargs)
        proposed.append(found[0].tolist())
        return found

    own = MTPCandidateGenerator.get_candidates
    monkeypatch.setattr(MTPCandidateGenerator, "get_candidates", watched)
    layers = 61  # transformers finds the layer by the number that it has in DeepSeek V3
    random_model(small_config("deepseek_v3", num_hidden_layers=layers)).save_pretrained(tmp_path / "source")
    add_predictor(tmp_path / "source", "deepseek_v3", layers)
    folded = convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded").out
    made, proposals = dict[str, torch.Tensor](), dict[str, list[list[int]]]()
    for name, folder in (("source", tmp_path / "source"), ("folded", folded)):
        model = load(folder)
        made[name] = generate(model, tokens(1), use_mtp=True)
        proposals[name] = [*proposed]
        proposed.clear()
        assert torch.equal(made[name], generate(model, tokens(1)))
    assert torch.equal(made["folded"], made["source"])
    assert proposals["folded"] == proposals["source"] != []


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampling", "beams"])
def test_model_without_attention_makes_the_sources_tokens(options: dict[str, Any], tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "mamba")
    ids, mask = left_padded()
    assert torch.equal(generate(pair.folded, ids, mask, **options), generate(pair.source, ids, mask, **options))


def test_generation_config_of_the_source_is_kept(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    assert load(pair.folded_folder).generation_config == pair.source.generation_config
