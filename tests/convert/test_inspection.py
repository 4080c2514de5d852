"""The paper's figures, to the digit, and what inspect says of other models."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefold.convert import FoldOptions, UsageError, inspect_checkpoint
from tests.conftest import SHAPES, small_config

CONFIGS = Path(__file__).parents[1] / "configs"

# Graef 2024 (arXiv 2402.13388v3), first and second table. The vocabulary of Pythia-6.9B is the paper's, 50400.
PAPER: dict[str, dict[str, Any]] = {
    "pythia-6.9b": {
        "weights_eliminated": 184_549_376,
        "reads": [(184_553_472, 16_384, 11_264), (None, None, 704), (None, None, 44), (None, None, 11)],
        "embedding_memory_increase": 619_315_200,
        "weights_memory_decrease": 184_549_376,
        "net_memory_change": 434_765_824,
        "percent": 6,
    },
    "mistral-7b": {
        "weights_eliminated": 25_165_824,
        "reads": [(25_169_920, 10_240, 2_458), (None, None, 154), (None, None, 10), (None, None, 3)],
        "embedding_memory_increase": 196_608_000,
        "weights_memory_decrease": 25_165_824,
        "net_memory_change": 171_442_176,
        "percent": 2,
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tables_are_reproduced_to_the_digit(name: str):
    told = inspect_checkpoint(str(CONFIGS / f"{name}.json"), options=FoldOptions(merge_residual=True)).as_json()
    paper, expected = told["paper"], PAPER[name]
    for figure in ("weights_eliminated", "embedding_memory_increase", "weights_memory_decrease", "net_memory_change"):
        assert paper[figure] == expected[figure]
    assert round(100 * paper["relative_to_total"]) == expected["percent"]
    assert [reads["batch"] for reads in paper["reads"]] == [1, 16, 256, 1024]
    for reads, (before, after, ratio) in zip(paper["reads"], expected["reads"], strict=True):
        assert reads["ratio"] == ratio
        assert before in (None, reads["before"])
        assert after in (None, reads["after"])


def test_whole_model_saving_is_the_honest_one():
    told = inspect_checkpoint(str(CONFIGS / "pythia-6.9b.json"), options=FoldOptions(merge_residual=True)).as_json()
    assert told["dtype"] == "float16"
    assert round(100 * told["reads"][0]["model_saving"], 1) == 2.8
    assert told["verdict"] == "saves 2.8 % of the bytes read per decoded token at batch 1 for +0.87 GB"


def test_a_serial_model_is_not_worth_it():
    told = inspect_checkpoint(str(CONFIGS / "mistral-7b.json")).as_json()
    assert told["verdict"].startswith("not worth it: +0.34 GB for 0.4 %")
    assert told["break_even_batch"] == 4096


def saved_config(model_type: str, folder: Path, **changes: Any) -> str:
    small_config(model_type, **changes).save_pretrained(folder)
    return str(folder)


def test_json_has_the_keys_that_other_programs_rely_on(tmp_path: Path):
    told = json.loads(json.dumps(inspect_checkpoint(saved_config("gpt_neox", tmp_path)).as_json()))
    assert told["foldable"] is True
    assert told["reasons"] == []
    assert told["exact"] is True
    (side,) = told["sides"]
    assert set(side) == {"side", "residual", "columns", "dropped", "look_ups", "rows", "row_width", "row_bytes"}
    assert {column["module"].rpartition(".")[2] for column in side["columns"]} == {"query_key_value", "mlp"}
    assert all(set(column) == {"module", "width", "weights_eliminated"} for column in side["columns"])
    width = side["residual"]["width"] + sum(column["width"] for column in side["columns"])
    assert (side["rows"], side["row_width"], side["look_ups"]) == (97, width, {})
    assert told["table_bytes"] == 97 * width * 4
    assert told["tenth_bytes"] == told["table_bytes"] // 10
    assert set(told["checkpoint_bytes"]) == {"before", "after"}
    for reads in told["reads"]:
        for name in ("first_layer_before", "first_layer_after", "model_before", "model_after"):
            assert reads[f"{name}_bytes"] == 4 * reads[name]
        assert reads["first_layer_ratio"] == reads["first_layer_before"] / reads["first_layer_after"]
        assert reads["model_saving"] == pytest.approx(1 - reads["model_after"] / reads["model_before"])


def test_both_layouts_are_shown_whichever_is_asked_for(tmp_path: Path):
    model = saved_config("gpt_neox", tmp_path)
    exact, merged = (
        inspect_checkpoint(model, options=FoldOptions(merge_residual=merge)).as_json() for merge in (False, True)
    )
    assert exact["layouts"] == merged["layouts"]
    assert exact["layouts"]["exact"]["row_width"] == 3 * 32 + 2 * 32
    assert merged["sides"][0]["row_width"] == merged["layouts"]["merged"]["row_width"] == 2 * (32 + 32)


def test_only_active_experts_count(tmp_path: Path):
    model = saved_config("mixtral", tmp_path, num_hidden_layers=1)
    one, many = (inspect_checkpoint(model).as_json()["reads"][index]["model_before"] for index in (0, 3))
    experts = 4 * 3 * 32 * 48
    assert many - one - 1023 * 32 == pytest.approx(experts / 2, abs=1)


def test_a_limit_in_bytes_chooses_the_cut(tmp_path: Path):
    model = saved_config("deepseek_v3", tmp_path)
    cuts = {cut.name: cut.table_bytes for cut in inspect_checkpoint(model).savings.cuts}
    small = cuts["self_attn.q_a_layernorm"]
    for limit, name in ((cuts["deepest"], "deepest"), (cuts["deepest"] - 1, "self_attn.q_a_layernorm")):
        told = inspect_checkpoint(model, options=FoldOptions(max_table=limit)).as_json()
        assert [cut["name"] for cut in told["cuts"] if cut["chosen"]] == [name]
    with pytest.raises(UsageError, match=f"the smallest table has {small:,} bytes, more than {small - 1:,}"):
        inspect_checkpoint(model, options=FoldOptions(max_table=small - 1))
    with pytest.raises(UsageError, match="--max-table chooses a cut, and --cut deepest names one"):
        inspect_checkpoint(model, options=FoldOptions(cut="deepest", max_table=small))


def test_break_even_is_the_last_batch_that_gains(tmp_path: Path):
    from prefold.convert.checkpoint.source import open_config
    from prefold.convert.fold.reads import break_even_batch, count_reads
    from prefold.convert.model.load import load_config, resolve_model
    from prefold.convert.study import study_model

    source = open_config(saved_config("llama", tmp_path))
    config = load_config(source)
    census = study_model(resolve_model(source, config).model_class, config).census
    limit = break_even_batch(census)
    assert limit is not None
    assert count_reads(census, limit).model_saving >= 0
    assert count_reads(census, limit + 1).model_saving < 0


@pytest.mark.parametrize("model_type", SHAPES)
def test_every_architecture_folds_and_eliminates_its_projections(model_type: str, tmp_path: Path):
    told = inspect_checkpoint(saved_config(model_type, tmp_path)).as_json()
    assert told["foldable"], told["reasons"]
    for side in told["sides"]:
        assert side["row_width"] > side["residual"]["width"]
    assert told["weights_eliminated"] >= 32 * 32


def test_what_depends_on_position_in_no_separable_way_is_refused_with_the_reason(tmp_path: Path):
    """CPM-Ant puts a learned prompt before the tokens: their rows are not those of the batch."""
    from transformers import CpmAntConfig

    CpmAntConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, dim_head=8).save_pretrained(
        tmp_path
    )
    told = inspect_checkpoint(str(tmp_path)).as_json()
    assert told["foldable"] is False
    assert told["reasons"]
    assert told["verdict"].startswith("does not fold")


def test_a_sum_of_look_ups_is_told_with_the_tables_that_it_needs(tmp_path: Path):
    told = inspect_checkpoint(saved_config("bert", tmp_path)).as_json()
    assert told["exact"] is False
    (side,) = told["sides"]
    width = 3 * 32
    assert side["look_ups"] == {
        "bert.embeddings.position_embeddings": 128 * width,
        "bert.embeddings.token_type_embeddings": 2 * width,
    }
    assert side["row_width"] == side["residual"]["width"] + width
    biases = width
    assert told["table_bytes"] == 4 * (97 * side["row_width"] + (128 + 2) * width + biases)


def test_an_encoder_decoder_has_two_sides(tmp_path: Path):
    told = inspect_checkpoint(saved_config("t5", tmp_path)).as_json()
    assert [side["side"] for side in told["sides"]] == ["encoder", "decoder"]
    assert told["unfolded"] == []
    assert told["table_bytes"] == sum(4 * side["rows"] * side["row_width"] for side in told["sides"])
