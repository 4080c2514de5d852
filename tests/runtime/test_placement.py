"""Wherever its table lies, a folded model says what it says with the table on the device, bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from prefold.convert import FoldOptions
from prefold.convert.checkpoint.files import CONFIG
from prefold.runtime import FoldedInputError
from tests.conftest import load, tokens
from tests.runtime.pairs import Interruption, cached_steps, generate, interrupted, left_padded, logits, make_folded
from tests.runtime.placing import ELSEWHERE, PLACEMENTS, load_each, tables
from tests.verify.faults import edited_json
from tests.verify.tokenizer import WORDS, save_tokenizer

CAUSAL = ("llama", "gpt_neox", "mamba", "mixtral", "gemma3n_text", "qwen3_5_text", "gpt2")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(
    scope="module",
    params=[(name, dtype) for name in CAUSAL for dtype in DTYPES],
    ids=lambda each: f"{each[0]}-{str(each[1]).removeprefix('torch.')}",
)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_each(make_folded(tmp_path_factory.mktemp(request.param[0]), *request.param))


def test_prefill(models: dict[str, Any]) -> None:
    ids, (padded, mask) = tokens(), left_padded()
    said = [(logits(model, ids), logits(model, padded, mask)) for model in models.values()]
    assert not torch.equal(said[0][0], logits(models["device"], tokens(seed=1)))
    for each in said[1:]:
        assert torch.equal(each[0], said[0][0])
        assert torch.equal(each[1], said[0][1])
    assert all(row.values is None for model in models.values() for row in model.prefold_rows)


@pytest.mark.parametrize("padded", [False, True], ids=["one prompt", "left-padded batch"])
def test_cached_steps(models: dict[str, Any], padded: bool) -> None:
    ids, mask = left_padded() if padded else (tokens(1), torch.ones(1, 12, dtype=torch.long))
    made = {placement: cached_steps(model, ids, mask) for placement, model in models.items()}
    for placement in ELSEWHERE:
        assert all(torch.equal(one, other) for one, other in zip(made[placement], made["device"], strict=True))


def test_greedy_generation(models: dict[str, Any]) -> None:
    made = [generate(model, tokens()) for model in models.values()]
    assert len(made[0].unique()) > 3
    assert torch.equal(made[1], made[0])
    assert torch.equal(made[2], made[0])


def test_threads_side_by_side(placed: dict[str, Any]) -> None:
    prompts = [tokens(length=2 + seed % 20, seed=seed) for seed in range(60)]
    expected = [logits(placed["device"], ids) for ids in prompts]
    for placement in ELSEWHERE:
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda ids, model=placed[placement]: logits(model, ids), prompts))
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_two_sides_with_a_table_each(model_type: str, tmp_path: Path) -> None:
    models, ids, more = load_each(make_folded(tmp_path, model_type)), tokens(), tokens(2, 5, seed=1)
    assert [len(tables(model)) for model in models.values()] == [2] * 3
    with torch.no_grad():
        said = [model(input_ids=ids, decoder_input_ids=more).logits for model in models.values()]
        made = [generate(model, ids, max_new_tokens=5) for model in models.values()]
    for values in (said, made):
        assert torch.equal(values[1], values[0])
        assert torch.equal(values[2], values[0])


SMALLER = {
    "int8": {"table_dtype": "int8"},
    "int8 residual": {"table_dtype": "int8", "quantize_residual": True},
    "float8": {"table_dtype": "float8_e4m3fn"},
    "bfloat16": {"table_dtype": "bfloat16"},
}


@pytest.mark.parametrize("options", SMALLER.values(), ids=SMALLER)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_smaller_rows(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    native = load(make_folded(tmp_path / "native", model_type))
    models = load_each(make_folded(tmp_path / "smaller", model_type, options=FoldOptions(**options)))
    said = [logits(model, tokens()) for model in models.values()]
    assert not torch.equal(said[0], logits(native, tokens()))
    assert torch.equal(said[1], said[0])
    assert torch.equal(said[2], said[0])
    assert tables(models["disk"])[0].rows.table.dtype == torch.uint8


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded in", "cast to"])
@pytest.mark.parametrize("dtypes", [DTYPES, DTYPES[::-1], (torch.bfloat16, torch.float16)], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_another_dtype(model_type: str, dtypes: Any, loaded: bool, tmp_path: Path) -> None:
    native, asked = dtypes
    folder = make_folded(tmp_path, model_type, native)
    models = load_each(folder, dtype=asked) if loaded else {p: m.to(asked) for p, m in load_each(folder).items()}
    said = [logits(model, tokens()) for model in models.values()]
    assert {values.dtype for values in said} == {asked}
    assert torch.equal(said[1], said[0])
    assert torch.equal(said[2], said[0])
    assert tables(models["disk"])[0].rows.table.dtype == native


def test_one_changed_value_shows(llama: Path) -> None:
    """Else all of the above could be of tables that nobody reads."""
    model, ids = load(llama, prefold_placement="host"), tokens()
    before = logits(model, ids)
    tables(model)[0].rows.table[ids[0, 0], -1] += 1
    assert not torch.equal(logits(model, ids), before)


CHOICES = [
    (None, None, None, "device"),
    (None, None, "disk", "disk"),
    (None, "host", "disk", "host"),
    (None, "", "disk", "disk"),
    ("disk", "host", "device", "disk"),
    ("device", "host", "disk", "device"),
]


@pytest.mark.parametrize(("argument", "environment", "config", "expected"), CHOICES, ids=str)
def test_argument_before_environment_before_config(
    argument: str | None,
    environment: str | None,
    config: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_folded(tmp_path, options=FoldOptions(**({"placement": config} if config else {})))
    monkeypatch.delenv("PREFOLD_PLACEMENT", raising=False)
    if environment is not None:
        monkeypatch.setenv("PREFOLD_PLACEMENT", environment)
    model = load(folder, **({"prefold_placement": argument} if argument else {}))
    kinds = {"device": "NoneType", "host": "HostRows", "disk": "DiskRows"}
    assert model.prefold_placement == expected
    assert type(tables(model)[0].rows).__name__ == kinds[expected]
    assert tables(model)[0].is_on_device == (expected == "device")


@pytest.mark.parametrize("where", ["argument", "environment", "config"])
def test_unknown_placement_is_refused(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, options = make_folded(tmp_path), {}
    if where == "argument":
        options = {"prefold_placement": "cuda"}
    elif where == "environment":
        monkeypatch.setenv("PREFOLD_PLACEMENT", "cuda")
    else:
        with edited_json(folder / CONFIG) as config:
            config["prefold"]["placement"] = "cuda"
    with pytest.raises(ValueError, match="prefold_placement 'cuda' is none of device, host, disk"):
        load(folder, **options)


@pytest.mark.parametrize("placement", ELSEWHERE)
def test_pipeline(llama: Path, placement: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    pipes = [
        pipeline(
            "text-generation",
            model=str(llama),
            tokenizer=str(tmp_path),
            trust_remote_code=True,
            model_kwargs={"prefold_placement": each},
        )
        for each in ("device", placement)
    ]
    assert [type(tables(pipe.model)[0].rows).__name__ for pipe in pipes] == ["NoneType", f"{placement.title()}Rows"]
    said = [pipe("to be or not", max_new_tokens=8, do_sample=False)[0]["generated_text"] for pipe in pipes]
    assert said[0] == said[1]
    assert set(said[0].split()) & set(WORDS)


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(llama: Path, placed: dict[str, Any], device_map: Any, placement: str) -> None:
    model = load(llama, device_map=device_map, prefold_placement=placement)
    assert torch.equal(logits(model, tokens()), logits(placed["device"], tokens()))
    assert tables(model)[0].rows is not None


@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("on_disk", ["embed_tokens", "layers.0", "everything"])
def test_other_parts_on_disk(llama: Path, placed: dict[str, Any], on_disk: str, placement: str, tmp_path: Path) -> None:
    """By accelerate, which reads weights anew for each use of a module."""
    parts = ["embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb"]
    places = {f"model.{part}": "disk" if on_disk in (part, "everything") else "cpu" for part in parts}
    places["lm_head"] = "cpu"
    model = load(llama, device_map=places, offload_folder=tmp_path / "off", prefold_placement=placement)
    assert torch.equal(logits(model, tokens()), logits(placed["device"], tokens()))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(logits(again, tokens()), logits(placed["device"], tokens()))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("placement", ELSEWHERE)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_one_graph(model_type: str, placement: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = load(make_folded(tmp_path, model_type, num_hidden_layers=1), prefold_placement=placement)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ids in (tokens(), tokens(1, 8)):
        torch.testing.assert_close(logits(compiled, ids), logits(model, ids), rtol=1.3e-6, atol=1e-5)
        assert model.prefold_rows[0].values is None


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_only_the_source_can_do_is_refused_all_the_same(llama: Path, placement: str) -> None:
    model = load(llama, prefold_placement=placement)
    with pytest.raises(FoldedInputError, match="takes input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(2, 12, 32))
    with pytest.raises(FoldedInputError, match="cannot be trained"):
        model.train()(input_ids=tokens())
    with pytest.raises(FoldedInputError, match=r"embed_tokens is folded .* add tokens to the source"):
        model.eval().resize_token_embeddings(120)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pass_after_an_interrupted_one_is_right(placed: dict[str, Any], placement: str) -> None:
    model, ids = placed[placement], tokens()
    with interrupted(model.model.layers[0].self_attn.q_proj), pytest.raises(Interruption):
        logits(model, tokens(3, 7))
    assert torch.equal(logits(model, ids), logits(placed["device"], ids))
