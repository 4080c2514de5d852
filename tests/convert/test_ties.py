"""Who still needs a weight that was the embedding's."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from prefold.convert import convert_checkpoint
from prefold.convert.model.ties import find_ties
from prefold.verify import require_verified, verify_checkpoint
from tests.conftest import load, random_model, small_config, tokens


def tied(model, embeddings: list[str], idle: tuple[str, ...] = ()):
    called = {name for name, _ in model.named_modules()} - set(idle)
    return find_ties(model, dict(model.all_tied_weights_keys), embeddings, called, cleared={})


def test_a_tied_head_inherits():
    model = random_model(small_config("gpt2"))
    ties = tied(model, ["transformer.wte"])
    assert set(ties.shared) == {"transformer.wte.weight", "lm_head.weight"}
    assert ties.remaining_owners == ["lm_head.weight"]
    assert not ties.others


def test_a_head_that_no_pass_calls_inherits_nothing():
    assert tied(random_model(small_config("gpt2")), ["transformer.wte"], idle=("lm_head",)).remaining_owners == []


def test_an_untied_embedding_has_no_heirs():
    ties = tied(random_model(small_config("llama")), ["model.embed_tokens"])
    assert (ties.shared, ties.remaining_owners, ties.others) == (["model.embed_tokens.weight"], [], False)


def test_where_both_sides_fold_a_shared_embedding_is_the_heads_alone():
    """The head is tied to a module that nobody calls: that keeps the weight, and stays tied to it."""
    ties = tied(
        random_model(small_config("bart")),
        ["model.encoder.embed_tokens", "model.decoder.embed_tokens"],
        idle=("model.shared",),
    )
    assert len(ties.shared) == 4
    assert ties.remaining_owners == ["model.shared.weight"]
    assert ties.others


def test_where_one_side_folds_the_other_still_needs_a_shared_embedding():
    ties = tied(random_model(small_config("bart")), ["model.decoder.embed_tokens"], idle=("model.shared", "lm_head"))
    assert ties.remaining_owners == ["model.shared.weight"]


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "bart", "t5", "opt"])
def test_a_tied_weight_is_stored_once_for_who_needs_it(model_type: str, tmp_path):
    model = random_model(small_config(model_type, tie_word_embeddings=True))
    embedding = model.get_input_embeddings().weight.detach().clone()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded")
    stored = 0
    for file in (tmp_path / "folded").glob("model-*.safetensors"):
        with safe_open(file, "pt") as opened:
            stored += sum(torch.equal(opened.get_tensor(name), embedding) for name in opened.keys())  # noqa: SIM118
    assert stored == 1
    folded = load(tmp_path / "folded")
    assert torch.equal(folded.get_output_embeddings().weight, embedding)
    folded.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again").state_dict()
    assert again.keys() == folded.state_dict().keys()
    assert all(torch.equal(again[name], values) for name, values in folded.state_dict().items())


@pytest.mark.parametrize("stored", [["embedding"], ["head"], ["embedding", "head"]])
def test_a_head_has_the_row_of_padding_that_loading_gives_the_source(stored: list[str], tmp_path: Path):
    """Some classes set it to zero in the embedding alone, before the head is tied; none of the files has it so."""
    model, names = (
        random_model(small_config("youtu")),
        {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight"},
    )
    assert model.get_output_embeddings().weight[model.config.pad_token_id].any()
    model.save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    tensors = load_file(file)
    shared = tensors.pop(names["embedding"])
    save_file(tensors | {names[each]: shared.clone() for each in stored}, file, {"format": "pt"})
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded", check=require_verified())
    heads = [load(tmp_path / name).get_output_embeddings().weight for name in ("source", "folded")]
    assert torch.equal(*heads)
    assert heads[0][model.config.pad_token_id].any() == ("head" in stored)


def test_a_head_with_the_row_of_padding_that_the_file_has_is_told(tmp_path: Path):
    random_model(small_config("youtu")).save_pretrained(tmp_path / "source")
    folded = convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded").out
    (file,) = folded.glob("model-*.safetensors")
    tensors = load_file(file)
    tensors["lm_head.weight"] = load_file(tmp_path / "source" / "model.safetensors")["model.embed_tokens.weight"]
    save_file(tensors, file, {"format": "pt"})
    verification = verify_checkpoint(str(tmp_path / "source"), folded)
    assert verification.failed == ["structure", "logits"]
    assert "lm_head.weight: not the source's bytes" in verification.checks["structure"].problems


def test_a_model_without_a_head_stores_no_embedding(tmp_path):
    AutoModel.from_config(small_config("bert")).save_pretrained(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded")
    names = []
    for file in (tmp_path / "folded").glob("model-*.safetensors"):
        with safe_open(file, "pt") as opened:
            names += list(opened.keys())
    assert not [name for name in names if "word_embeddings" in name]
    source, folded = (
        AutoModel.from_pretrained(tmp_path / name, trust_remote_code=True).eval() for name in ("source", "folded")
    )
    ids = tokens()
    with torch.no_grad():
        said = [each(ids).last_hidden_state for each in (source, folded)]
    torch.testing.assert_close(said[1], said[0], rtol=1e-4, atol=1e-5)
