"""What inspect says of every module of the first layer: what it sees, and what becomes of it."""

import pytest

from prefold.convert import inspect_checkpoint
from prefold.convert.experiment.explain import NEITHER, OTHERS, PLACE, PLACED, TOKEN


def explained(checkpoint, model_type: str, **changes) -> dict[str, tuple[str, str]]:
    savings = inspect_checkpoint(str(checkpoint(model_type, **changes))).savings
    return {module.module: (module.sees, module.becomes) for module in savings.modules}


@pytest.mark.parametrize(
    ("model_type", "module", "sees", "becomes"),
    [
        ("llama", "model.embed_tokens", TOKEN, "table"),
        ("llama", "model.layers.0.input_layernorm", TOKEN, "dropped: nobody reads it any more"),
        ("llama", "model.layers.0.self_attn.k_proj", TOKEN, "column"),
        ("llama", "model.layers.0.self_attn.o_proj", OTHERS, "stays"),
        ("llama", "model.layers.0.mlp.up_proj", OTHERS, "stays"),
        ("gpt_neox", "gpt_neox.layers.0.mlp.dense_h_to_4h", TOKEN, "part of the column gpt_neox.layers.0.mlp"),
        ("gpt2", "transformer.wpe", PLACE, "stays, and looks up what it adds to the columns"),
        ("gpt2", "transformer.h.0.attn.c_attn", PLACED, "column of a sum"),
        ("bert", "bert.embeddings.token_type_embeddings", NEITHER, "stays, and looks up what it adds to the columns"),
        ("bert", "bert.embeddings.LayerNorm", PLACED, "stays"),
        ("bart", "model.decoder.layers.0.encoder_attn.k_proj", NEITHER, "stays"),
    ],
)
def test_modules_are_explained(checkpoint, model_type: str, module: str, sees: str, becomes: str):
    assert explained(checkpoint, model_type)[module] == (sees, becomes)


def test_every_module_with_weights_up_to_the_first_blocks_end_is_told_of(checkpoint):
    told = explained(checkpoint, "llama")
    block = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    block += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    assert told.keys() == {"model.embed_tokens", *(f"model.layers.0.{name}" for name in block)}
