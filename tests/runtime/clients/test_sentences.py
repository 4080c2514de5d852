"""sentence-transformers with modules of its own behind the model."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.models import Dense, Pooling, Transformer

from tests.conftest import VOCABULARY
from tests.runtime.clients.checkpoints import folded, text_checkpoint
from tests.runtime.clients.ways import Way

SENTENCES = ["to be or not to be", "that is the question", "whether it is nobler"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_sentences_are_encoded_as_by_the_source(model_type: str, way: Way, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = Transformer(str(text_checkpoint(tmp_path / "model", model_type)), max_seq_length=32)
    source = SentenceTransformer(modules=[parts, Pooling(32), Dense(32, 8)], device="cpu")
    source.save(str(tmp_path / "source"))
    assert (tmp_path / "source" / "2_Dense" / "model.safetensors").exists()
    client = SentenceTransformer(str(folded(tmp_path / "source")), device="cpu", **way.options)
    way.require(client[0].auto_model)
    assert [type(module) for module in client] == [type(module) for module in source]
    assert client.tokenizer.vocab == source.tokenizer.vocab
    expected, said = (each.encode(SENTENCES, convert_to_tensor=True) for each in (source, client))
    assert expected.shape == (3, 8)
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.exhaustive
def test_sparse_encoder_weighs_words_as_the_source(way: Way, tmp_path: Path) -> None:
    source = SparseEncoder(str(text_checkpoint(tmp_path / "model", "bert")), device="cpu")
    source.save(str(tmp_path / "source"))
    client = SparseEncoder(str(folded(tmp_path / "source")), device="cpu", **way.options)
    way.require(client[0].auto_model)
    expected, said = (each.encode(SENTENCES, convert_to_sparse_tensor=False) for each in (source, client))
    assert expected.shape == (3, VOCABULARY)
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-5)
