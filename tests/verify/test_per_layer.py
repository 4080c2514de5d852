"""Tables of a model's own, looked up for every layer: their sum with what is made of the embedding is stored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prefold.convert import FoldOptions, convert_checkpoint
from prefold.convert.checkpoint.files import TABLE
from prefold.runtime.columns_prefold import FoldedInputError
from prefold.verify import verify_checkpoint
from tests.conftest import exhaustive, load, random_model, small_config, tokens
from tests.verify import faults

LOOK_UP, ADDED, PROJECTION = "embed_tokens_per_layer", "per_layer_projection_norm", "per_layer_model_projection"
DTYPES = (torch.float32, torch.bfloat16)
WIDTH = 3 * 8  # values that the look-up returns, 8 for each layer
APART = 8  # zeros behind a row of it, so that nothing takes the table for the source's


def inside(model_type: str) -> str:
    return "model." if model_type.endswith("_text") else "model.language_model."


def cases(*model_types: str) -> Iterator[object]:
    for model_type in model_types:
        for dtype in DTYPES:
            few = model_type == "gemma4" and dtype is torch.bfloat16
            yield (model_type, dtype) if few else exhaustive(model_type, dtype)


def converted(tmp_path: Path, model_type: str, dtype: torch.dtype = torch.float32, **options) -> tuple[Path, Path]:
    if model_type == "gemma3n":
        pytest.importorskip("timm")  # its tower of images, whose torchvision is built for another torch than the tests'
    source, folded = tmp_path / "source", tmp_path / "folded"
    random_model(small_config(model_type), dtype).save_pretrained(source)
    convert_checkpoint(str(source), folded, options=FoldOptions(text_only=True, **options))
    return source, folded


@pytest.mark.parametrize(("model_type", "dtype"), cases("gemma3n_text", "gemma4_text", "gemma3n", "gemma4"))
def test_it_verifies_with_one_slice_for_the_look_up_and_what_is_added_to_it(
    model_type: str, dtype: torch.dtype, tmp_path: Path
):
    source, folded = converted(tmp_path, model_type, dtype)
    verification = verify_checkpoint(str(source), folded)
    assert verification.passed, verification.as_markdown()
    cut, prefix = faults.folded_cut(folded), inside(model_type)
    assert [(each.module, each.into) for each in cut.merged] == [(f"{prefix}{ADDED}", f"{prefix}{LOOK_UP}")]
    assert f"{prefix}{PROJECTION}" in [each.module for each in cut.dropped]
    assert f"{prefix}{ADDED}" not in [each.module for each in cut.stored]
    assert next(each.width for each in cut.stored if each.module == f"{prefix}{LOOK_UP}") == WIDTH


@pytest.mark.parametrize(("model_type", "dtype"), cases("gemma3n_text", "gemma4_text", "gemma4"))
def test_a_cut_leaves_the_embedding_and_does_not_grow(model_type: str, dtype: torch.dtype, tmp_path: Path):
    prefix = inside(model_type)
    source, folded = converted(tmp_path, model_type, dtype, cut=f"{prefix}{LOOK_UP}")
    verification = verify_checkpoint(str(source), folded)
    assert verification.passed, verification.as_markdown()
    cut = faults.folded_cut(folded)
    assert (cut.embedding, cut.columns) == (f"{prefix}{LOOK_UP}", [])
    assert cut.row_width == WIDTH + APART
    before, after = (sum(each.numel() for each in load(folder).parameters()) for folder in (source, folded))
    gone = 32 * WIDTH + 8  # the projection and the norm behind it
    assert after == before - gone + 97 * APART
    with pytest.raises(FoldedInputError, match="no token ids were looked up"):
        load(folded)(inputs_embeds=torch.zeros(1, 3, 32, dtype=dtype), per_layer_inputs=torch.zeros(1, 3, 3, 8))


@pytest.mark.parametrize("cut", ["auto", f"model.language_model.{LOOK_UP}"])
def test_a_wrong_sum_is_seen(cut: str, tmp_path: Path):
    source, folded = converted(tmp_path, "gemma4", cut=cut)
    column = next(each for each in faults.folded_cut(folded).stored if each.module.endswith(LOOK_UP))
    with faults.edited_tensors(folded / TABLE) as tensors:
        (table,) = tensors.values()
        table[5, column.start] += 0.5
    faults.hide(folded)
    verification = verify_checkpoint(str(source), folded)
    assert "rows" in verification.failed
    assert f"furthest off in model.language_model.{LOOK_UP}" in "\n".join(verification.checks["rows"].problems)


@pytest.mark.parametrize(("cut", "placement"), [("auto", "device"), (f"model.{LOOK_UP}", "disk")])
def test_a_look_up_without_rows_for_all_tokens_gets_them(cut: str, placement: str, tmp_path: Path):
    source, folded, ids = tmp_path / "source", tmp_path / "folded", torch.tensor([[84, 85, 96, 0]])
    random_model(small_config("gemma3n_text", vocab_size_per_layer_input=85)).save_pretrained(source)
    convert_checkpoint(str(source), folded, options=FoldOptions(cut=cut, placement=placement))
    verification = verify_checkpoint(str(source), folded)
    assert verification.passed, verification.as_markdown()
    with torch.no_grad():
        assert torch.equal(load(folded)(ids).logits, load(source)(ids).logits)


def test_rows_of_tokens_that_the_look_up_lacks_are_checked(tmp_path: Path):
    """Their look-up returns the first token's row; what is added to it is their own."""
    source, folded = tmp_path / "source", tmp_path / "folded"
    random_model(small_config("gemma3n_text", vocab_size_per_layer_input=85)).save_pretrained(source)
    convert_checkpoint(str(source), folded, options=FoldOptions(cut=f"model.{LOOK_UP}"))
    with faults.edited_tensors(folded / TABLE) as tensors:
        (table,) = tensors.values()
        table[90] = table[0]
    faults.hide(folded)
    assert "rows" in verify_checkpoint(str(source), folded).failed


@pytest.mark.parametrize("placement", ["device", "disk"])
def test_code_that_asks_for_the_embeddings_weight_in_a_pass_gets_its_shape(placement: str, tmp_path: Path):
    source, folded = converted(tmp_path, "gemma4", placement=placement)
    ids = tokens()
    with torch.no_grad():
        model = load(folded)
        assert torch.equal(model(ids).logits, load(source)(ids).logits)
    table = model.get_input_embeddings()
    assert table.is_on_device is (placement == "device")
    table(ids)
    assert table.weight.shape == (97, 32)
    assert table.weight.isnan().all()
