"""A sample of what ``docs/coverage.md`` tells: types that no other test folds."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.accuracy import difference, errors, in_fp64
from benchmarks.checks import CHECKS, asked, checks_of, depends_on_tokens, first_logits
from benchmarks.comparison import Comparison
from benchmarks.coverage import measure, measure_apart
from benchmarks.coverage_page import page
from benchmarks.small import random_model, small_config
from benchmarks.tasks import KEYS, TASKS, Key, auto_class

ROOT = Path(__file__).parents[2]
EXACT = [
    "causal/olmoe",
    "causal/qwen3_moe",
    "causal/granite",
    "causal/nemotron",
    "causal/recurrent_gemma",
    "causal/jamba",
    "causal/lfm2",
    "causal/deepseek_v3",
    "causal/deepseek_v4",
    "causal/blt",
    "causal/gemma3",  # takes images, too
    "causal/internlm3",  # runs on another type's class
    "causal/zamba2",
    "masked/ultravbert",
    "seq2seq/moonshine",
    "seq2seq/t5gemma",
    "seq2seq/t5gemma2",  # its embedding holds a token's own row
]
ACCURATE = [
    "causal/xlm",
    "causal/ernie",
    "masked/layoutlm",
    "masked/convbert",
    "masked/ibert",  # its modules return tuples
    "masked/funnel",  # runs no token alone
    "masked/roc_bert",  # has a linear map in front of its sum
    "masked/longformer",  # pads its tokens
    "masked/squeezebert",  # has the sequence behind the values
    "seq2seq/canary",  # multiplies its positions
    "seq2seq/fsmt",  # has the sequence before the batch
    "seq2seq/m2m_100",
    "seq2seq/speecht5",
]
# Every type that does not fold, and why: the reasons are read off the experiment's passes.
REFUSED = {
    "causal/cpmant": "takes 40 positions where there are 8 tokens",
    "causal/ctrl": "its own code adds the position: no module looks it up",
    "causal/hrm_text": "runs more than once in a pass",
    "causal/prophetnet": "takes 24 positions where there are 8 tokens",
    "causal/xlnet": "its weights are used by its own code",
    "masked/mobilebert": "tokens see each other before its first block, by mobilebert.embeddings",
    "masked/perceiver": "is no module that its tokens go through",
    "seq2seq/pegasus_x": "takes 16 positions where there are 8 tokens",
}
# Of every task, types that are built in different ways.
BUILT = [
    *EXACT,
    "causal/emu3",
    "causal/gpt2",
    "masked/albert",
    "masked/bart",
    "masked/bert",
    "masked/distilbert",
    "masked/esm",
    "masked/modernbert",
    "masked/perceiver",
    "masked/roberta",
    "seq2seq/bart",
    "seq2seq/encoder-decoder",
    "seq2seq/marian",
    "seq2seq/moonshine",
    "seq2seq/qwen2_audio",
    "seq2seq/speech_to_text",
    "seq2seq/t5",
    "seq2seq/whisper",
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(name: str) -> PreTrainedModel:
    key = Key.read(name)
    return random_model(small_config(key.model_type, key.task), auto_class(key))


@pytest.mark.parametrize("name", EXACT)
def test_type_folds_exactly(name: str, tmp_path: Path):
    result = measure(Key.read(name), tmp_path)
    assert (result.result, result.reason) == ("exact", "")
    assert result.differences.keys() == {"rows", *checks_of(built(name), Key.read(name).task)}
    assert max(result.differences.values()) < 1e-5
    assert result.columns
    assert 0 < result.eliminated < 1
    assert result.error_ratio is None


def test_type_that_names_no_embedding_folds_exactly(tmp_path: Path):
    result = measure(Key.read("seq2seq/dia"), tmp_path)
    assert (result.result, result.reason) == ("exact", "")
    assert result.skipped.keys() == {"cached steps"}  # its source has them for several streams of tokens alone
    assert len(result.columns) == 6


@pytest.mark.parametrize("name", ACCURATE)
def test_type_with_added_positions_is_as_accurate_as_its_source(name: str, tmp_path: Path):
    result = measure(Key.read(name), tmp_path)
    assert (result.result, result.reason) == ("as accurate", "")
    assert result.error_ratio <= 1.05
    assert result.columns


def test_refused_types_are_all_that_the_page_tells_of():
    told = json.loads((ROOT / "docs" / "coverage.json").read_text())
    assert {name for name, result in told.items() if result["result"] == "refused"} == REFUSED.keys()
    assert not {name for name, result in told.items() if result["result"] in ("wrong", "crashed")}
    for task, share in {"causal": 0.95, "masked": 0.95, "seq2seq": 0.95}.items():
        results = [result["result"] for result in told.values() if result["task"] == task]
        folded = sum(result in ("exact", "as accurate", "close") for result in results)
        assert folded >= share * sum(result != "not built" for result in results)


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_refusal_is_told_with_its_reason(name: str, reason: str, tmp_path: Path):
    result = measure(Key.read(name), tmp_path)
    assert result.result == "refused"
    assert reason in result.reason


def test_type_that_does_not_run_is_told_with_its_reason(tmp_path: Path):
    result = measure(Key("seq2seq", "voxtral_realtime"), tmp_path)
    assert result.result == "not built"
    assert "input_features" in result.reason


def test_type_that_hangs_is_ended():
    results = list(measure_apart([Key("causal", "llama"), Key("masked", "bert")], seconds=0))
    assert {result.model_type for result in results} == {"llama", "bert"}
    assert {result.reason for result in results} == {"did not end within 0 seconds"}


@pytest.mark.parametrize("name", BUILT)
def test_small_model_runs_every_check(name: str):
    model, task = built(name), Key.read(name).task
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert depends_on_tokens(model, task)
    for said in checks_of(model, task).values():
        assert asked(said, model).isfinite().all()


@pytest.mark.parametrize("name", EXACT[:8])
def test_small_config_is_small(name: str):
    model_type = Key.read(name).model_type
    config = small_config(model_type)
    assert config.model_type == model_type
    assert config.vocab_size == 97
    assert config.hidden_size == 32
    assert config.num_hidden_layers == 4


def test_config_is_what_its_task_asks_for():
    assert small_config("bert", "causal").is_decoder
    assert not small_config("bert", "masked").is_decoder


def test_model_is_built_from_the_part_that_its_class_takes():
    model = built("causal/musicgen")
    assert model.config.model_type == "musicgen_decoder"
    assert depends_on_tokens(model, "causal")


def test_checks_follow_what_a_model_takes():
    assert checks_of(built("masked/bert"), "masked").keys() == CHECKS["masked"].keys()
    assert "token types" not in checks_of(built("causal/lfm2"), "causal")
    assert checks_of(built("seq2seq/qwen2_audio"), "seq2seq").keys() <= CHECKS["causal"].keys()
    assert "decoder positions" in checks_of(built("seq2seq/whisper"), "seq2seq")


def test_every_parameter_is_random():
    model = built("masked/bert")
    assert all(parameter.std() > 0 for parameter in model.parameters() if parameter.numel() > 1)


def test_fp64_reference_has_no_step_in_fp32():
    """Llama's norm and its rotary embedding are written to run in fp32 whatever the model's dtype."""
    model = built("causal/granite")
    with in_fp64(model) as double:
        true = first_logits(double, "causal")
        seen = {tensor.dtype for tensor in _between(double)}
    assert true.dtype == torch.float64
    assert seen == {torch.float64}
    assert torch.get_default_dtype() == torch.float32
    assert 1e-16 < errors(first_logits(model, "causal"), true).nmse < 1e-10


def _between(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return what a model's modules pass on, the rotary embedding's two parts included."""
    seen: list[torch.Tensor] = []

    def keep(_module, _inputs, output):
        parts = output if isinstance(output, tuple) else (output,)
        seen.extend(part for part in parts if isinstance(part, torch.Tensor))

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    first_logits(model, "causal")
    for handle in handles:
        handle.remove()
    return seen


def compared(source: PreTrainedModel, folded: PreTrainedModel, rows: dict[str, float]) -> Comparison:
    comparison = Comparison(source, folded, "masked", rows)
    comparison.run()
    return comparison


def changed(model: PreTrainedModel, by: float) -> PreTrainedModel:
    other = built("masked/bert")
    other.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in other.bert.encoder.layer:
            weight = layer.output.dense.weight
            weight.mul_(1 + by * torch.randn_like(weight))
    return other


def test_equal_models_are_exact():
    model = built("masked/bert")
    comparison = compared(model, model, {"rows": 0.0})
    assert comparison.judged() == ("exact", "")
    assert comparison.errors == {}


def test_equal_logits_without_rows_are_as_accurate():
    model = built("masked/bert")
    comparison = compared(model, model, {})
    assert comparison.judged() == ("as accurate", "")
    assert comparison.ratio == 1
    assert comparison.figures()["source_error"] == comparison.figures()["folded_error"]
    assert comparison.figures()["source_error"].keys() == CHECKS["masked"].keys()


@pytest.mark.parametrize(("by", "result"), [(2e-6, "close"), (1e-3, "wrong")])
def test_less_accurate_model_is_told(by: float, result: str):
    model = built("masked/bert")
    comparison = compared(model, changed(model, by), {})
    assert comparison.judged()[0] == result
    assert comparison.ratio > 1.05


def test_difference_of_what_is_not_finite_is_infinite():
    nan = torch.tensor([1.0, float("nan")])
    assert difference(nan, nan) == 0
    assert difference(torch.ones(2), nan) == float("inf")
    with pytest.raises(ValueError, match="nothing finite"):
        difference(nan[1:], nan[1:])


def test_page_counts_and_explains():
    told = {"refused_inputs": [], "reason": "", "columns": [], "eliminated": 0.0}
    told |= {"differences": {}, "skipped": {}, "error_ratio": None}
    text = page(
        [
            told
            | {"task": "causal", "model_type": "a", "result": "exact", "columns": ["q_proj"], "eliminated": 0.25}
            | {"differences": {"rows": 0.0, "prefill": 2e-7}},
            told | {"task": "causal", "model_type": "b", "result": "refused", "reason": "why | not"},
            told | {"task": "causal", "model_type": "c", "result": "not built", "skipped": {"prefill": "no"}},
            told | {"task": "masked", "model_type": "a", "result": "as accurate", "error_ratio": 0.9},
        ]
    )
    assert "| causal | 3 | 2 | 1 of 2, 50 % | 1 | 0 | 0 | 0 | 1 | 0 |" in text
    assert "| masked | 1 | 1 | 1 of 1, 100 % | 0 | 1 | 0 | 0 | 0 | 0 |" in text
    assert "| `a` | exact | `q_proj` | 25 % | 2.0e-07 |  |" in text
    assert "| `a` | as accurate |  |  |  | 0.9 |" in text
    assert "refused: why \\| not" in text
    assert "- causal `c`, prefill: no" in text


def test_every_type_is_asked_for():
    assert {*EXACT, *REFUSED, *BUILT} <= {str(key) for key in KEYS}
    assert {key.task for key in KEYS} == set(TASKS)
