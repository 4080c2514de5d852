"""What only the source can do is refused, in words."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from prefold.runtime import FoldedInputError
from tests.conftest import tokens
from tests.runtime.pairs import Pair, generate, logits, make_pair


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("serial"), "llama")


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("parallel"), "gpt_neox")


@pytest.fixture(params=["serial", "parallel"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


EMBEDDINGS = torch.zeros(2, 12, 32)
CALLS: dict[str, Callable[[Any], Any]] = {
    "model": lambda model: model(inputs_embeds=EMBEDDINGS),
    "base model": lambda model: model.base_model(inputs_embeds=EMBEDDINGS),
    "generate": lambda model: model.generate(inputs_embeds=EMBEDDINGS, max_new_tokens=2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_embeddings_instead_of_tokens_are_refused(pair: Pair, call: Callable[[Any], Any]) -> None:
    call(pair.source)
    with pytest.raises(FoldedInputError, match="takes input_ids, not inputs_embeds"):
        call(pair.folded)


def test_prompt_tuning_is_refused(pair: Pair) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(copy.deepcopy(pair.folded), config).eval()
    with pytest.raises(FoldedInputError, match="inputs_embeds"):
        logits(model, tokens())


@pytest.mark.parametrize("part", ["model", "base model"])
def test_training_mode_is_refused(pair: Pair, part: str) -> None:
    model = copy.deepcopy(pair.folded)
    (model if part == "model" else model.base_model).train()
    with pytest.raises(FoldedInputError, match="cannot be trained"):
        model(input_ids=tokens(), labels=tokens())
    assert torch.equal(logits(model.eval(), tokens()), logits(pair.folded, tokens()))


def test_resizing_the_vocabulary_is_refused(pair: Pair) -> None:
    model = copy.deepcopy(pair.folded)
    assert model.resize_token_embeddings() is model.resize_token_embeddings(97) is model.get_input_embeddings()
    with pytest.raises(FoldedInputError, match=r"is folded .* add tokens to the source, and fold it again"):
        model.resize_token_embeddings(120)


def test_nothing_of_a_fold_is_trained(pair: Pair) -> None:
    """Loading makes all parameters trainable; an optimizer would change the table in silence."""
    frozen = {name for name, each in pair.folded.named_parameters() if not each.requires_grad}
    assert frozen == {name for name in pair.folded.state_dict() if name not in pair.source.state_dict()} | {
        f"{fold['table']['module']}.weight" for fold in pair.folded.prefold_folds
    }


def test_the_table_is_an_embedding(pair: Pair) -> None:
    source, folded = pair.source, pair.folded
    embedding = folded.get_input_embeddings()
    assert (embedding.num_embeddings, embedding.embedding_dim) == source.get_input_embeddings().weight.shape
    gone = {name for name, _ in source.named_parameters()} - {name for name, _ in folded.named_parameters()}
    left = source.num_parameters(exclude_embeddings=True) - sum(source.get_parameter(name).numel() for name in gone)
    assert folded.num_parameters(exclude_embeddings=True) == left
    assert folded.num_parameters(True, True) == left


def test_training_a_folded_module_in_its_place_is_refused(pair: Pair) -> None:
    table, target = (
        pair.folded.prefold_folds[0]["table"]["module"].rpartition(".")[2],
        r".*layers\.1\..*\.(o_proj|dense)",
    )
    with pytest.raises(FoldedInputError, match=f"{table} is folded .* train the source"):
        _adapted(pair.folded, target_modules=target, modules_to_save=[table])
    with pytest.raises(ValueError, match="wrong layer"):
        _adapted(pair.folded, target_modules=target, trainable_token_indices=[1])(input_ids=tokens())


def _adapted(model: PreTrainedModel, **options: Any) -> peft.PeftModel:
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **options)
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "embed_tokens", "model.layers.0.self_attn.k_proj"])
def test_adapter_on_a_folded_module_is_refused(serial: Pair, target: str) -> None:
    with pytest.raises(ValueError, match=rf"{target}.* is folded into the table: it has no weights"):
        _adapted(serial.folded, target_modules=[target])


@pytest.mark.parametrize("target", ["query_key_value", "dense_h_to_4h", "embed_in"])
def test_adapter_inside_a_folded_module_is_refused(parallel: Pair, target: str) -> None:
    with pytest.raises(ValueError, match=rf"{target} is folded into the table: it has no weights"):
        _adapted(parallel.folded, target_modules=[target])


def test_adapter_trained_on_the_source_is_refused_where_it_needs_a_folded_module(serial: Pair, tmp_path: Path) -> None:
    _adapted(serial.source, target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="q_proj is folded into the table"):
        copy.deepcopy(serial.folded).load_adapter(str(tmp_path))


UNFOLDED: dict[str, dict[str, Any]] = {
    "other layers": {"target_modules": ["q_proj", "v_proj", "down_proj"], "layers_to_transform": [1, 2]},
    "other modules": {"target_modules": ["o_proj", "gate_proj"]},
    "head": {"target_modules": ["lm_head"]},
}


@pytest.mark.parametrize("options", UNFOLDED.values(), ids=UNFOLDED)
def test_adapter_on_other_modules_says_what_it_says_on_the_source(serial: Pair, options: dict[str, Any]) -> None:
    ids = tokens()
    source, folded = (_adapted(model, **options) for model in (serial.source, serial.folded))
    torch.testing.assert_close(logits(folded, ids), logits(source, ids), rtol=1.3e-6, atol=1e-5)
    assert not torch.allclose(logits(folded, ids), logits(serial.folded, ids))
    assert torch.equal(generate(folded, ids), generate(source, ids))


def test_adapter_trained_on_the_source_loads(serial: Pair, tmp_path: Path) -> None:
    adapted = _adapted(serial.source, target_modules=["o_proj"])
    adapted.save_pretrained(tmp_path)
    model = copy.deepcopy(serial.folded)
    model.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(model.eval(), tokens()), logits(adapted, tokens()), rtol=1.3e-6, atol=1e-5)
