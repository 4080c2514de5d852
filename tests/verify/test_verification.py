"""The whole verification of real folds: what it reports, and what it says when its inputs make no sense."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prefold.convert import BrokenCheckpoint, FoldOptions, UnsupportedModel, UsageError, convert_checkpoint
from prefold.convert.checkpoint.files import REMOTE_RUNTIME
from prefold.verify import Outcome, Verification, VerificationFailed, require_verified, verify_checkpoint, write_report
from prefold.verify.checks import CHECKS
from prefold.verify.probe.job import NEW_TOKENS
from prefold.verify.verification import ProbeFailed
from tests.conftest import random_model, small_config
from tests.verify.conftest import MakePair, Pair
from tests.verify.faults import edited_json
from tests.verify.tokenizer import save_tokenizer

FIGURES = {
    "structure": {"untouched_tensors", "side_files", "loaded_as"},
    "rows": {"rows", "unequal", "beyond_rounding", "not_finite", "max_abs_difference", "max_abs"},
    "logits": {"prefill", "step", "padded", "noise_floor", "exact", "steps_compared"},
    "greedy": {"continuations", "equal", "tokens"},
    "reads": {"batches"},
    "speed": {
        "source_tokens_per_second",
        "folded_tokens_per_second",
        "source_bytes_per_second",
        "folded_bytes_per_second",
        "ratio",
        "predicted_ratio",
    },
}


def verified(pair: Pair, **options: object) -> Verification:
    return verify_checkpoint(str(pair.source), pair.folded, **options)


@pytest.fixture(scope="module")
def verification(make_pair: MakePair) -> Verification:
    """Return all checks of a fold in bf16, speed included, whose source would rather sample than be greedy."""
    pair = make_pair("llama", torch.bfloat16)
    wayward = '{"do_sample": true, "num_return_sequences": 3, "repetition_penalty": 1.5, "stop_strings": ["a"]}'
    for folder in (pair.source, pair.folded):
        (folder / "generation_config.json").write_text(wayward)
    return verified(pair, speed=True)


def test_every_check_has_passed_with_its_figures(verification: Verification):
    figures = json.loads(json.dumps(verification.as_json()))
    assert figures["passed"] is True
    assert list(figures["checks"]) == [*CHECKS, "speed"]
    for name, expected in FIGURES.items():
        assert figures["checks"][name]["passed"] is True
        assert figures["checks"][name]["summary"]
        assert figures["checks"][name]["problems"] == []
        assert expected <= figures["checks"][name].keys()


def test_logits_are_measured_in_every_way_that_a_model_is_run(verification: Verification):
    logits = verification.as_json()["checks"]["logits"]
    for name in ("prefill", "step", "padded", "noise_floor"):
        assert logits[name].keys() == {"max_abs", "nmse", "kl_mean", "kl_p99", "top1_agreement"}
    assert logits["steps_compared"] == NEW_TOKENS


def test_16_bit_logits_are_equal_bit_for_bit(verification: Verification):
    assert verification.checks["logits"].figures["exact"]
    assert verification.checks["rows"].figures["unequal"] == 0
    assert verification.checks["greedy"].figures == {"continuations": 3, "equal": 3, "tokens": NEW_TOKENS}


def test_reads_are_measured_for_every_batch(verification: Verification):
    batches = verification.checks["reads"].figures["batches"]
    assert [batch["batch"] for batch in batches] == [1, 16, 64]
    for batch in batches:
        assert batch["before_bytes"] - batch["after_bytes"] == batch["formula_saved_bytes"]


def test_speed_stands_beside_what_reads_predict(verification: Verification):
    speed = verification.checks["speed"].figures
    first = verification.checks["reads"].figures["batches"][0]
    assert speed["predicted_ratio"] == first["before_bytes"] / first["after_bytes"]
    assert min(speed["ratio"], speed["source_tokens_per_second"], speed["folded_tokens_per_second"]) > 0


@pytest.mark.parametrize("ending", [".html", ".md"])
@pytest.mark.parametrize("passed", [True, False])
def test_a_report_has_the_verdict_and_every_check(
    verification: Verification, tmp_path: Path, ending: str, passed: bool
):
    bad = {"rows": Outcome(False, "1 of 97 rows <differs>", problems=["token 5 | is & wrong"])}
    shown = verification if passed else Verification("source", "folded", verification.checks | bad)
    write_report(shown, tmp_path / f"report{ending}")
    text = (tmp_path / f"report{ending}").read_text()
    assert ("FAILED" in text.partition("</style>")[2 if ending == ".html" else 0]) is not passed
    assert all(f"{name}</td>" in text or f"| {name} |" in text for name in [*CHECKS, "speed"])
    if not passed:
        assert "token 5 | is &amp; wrong" in text if ending == ".html" else "- rows: token 5 | is & wrong" in text
    if ending == ".html":
        assert f'class="{"passed" if passed else "FAILED"}"' in text
        assert "<differs>" not in text


def test_a_bar_in_a_summary_does_not_break_the_table():
    shown = Verification("s", "f", {"logits": Outcome(True, "max |Δ| 1e-7")}).as_markdown()
    assert r"| logits | passed | max \|Δ\| 1e-7 |" in shown


def test_a_report_is_a_page_or_is_refused(verification: Verification, tmp_path: Path):
    with pytest.raises(UsageError, match=r"report\.pdf: a report is a page"):
        write_report(verification, tmp_path / "report.pdf")


def test_figures_that_are_not_finite_are_null_in_json():
    outcome = Outcome(False, "far", {"max_abs": torch.inf, "each": [{"nmse": torch.nan}]})
    figures = Verification("s", "f", {"logits": outcome}).as_json()["checks"]["logits"]
    assert figures["max_abs"] is None
    assert figures["each"] == [{"nmse": None}]


def test_a_merged_residual_passes_beside_the_noise_floor(tmp_path: Path):
    random_model(small_config("gpt_neox")).save_pretrained(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded", options=FoldOptions(merge_residual=True))
    told: list[str] = []
    verification = verified(Pair(tmp_path / "source", tmp_path / "folded"), progress=told.append)
    assert verification.passed
    assert verification.checks["rows"].figures["max_abs_difference"].keys() == {
        "gpt_neox.embed_in",
        "gpt_neox.layers.0.attention.query_key_value",
    }
    logits = verification.checks["logits"].figures
    assert not logits["exact"]
    assert logits["prefill"]["max_abs"] <= max(1e-4, 2 * logits["noise_floor"]["max_abs"])
    assert told == ["opening", "comparing files", "running the source", "running the folded model"]


def test_experts_reads_agree(make_pair: MakePair):
    verification = verified(make_pair("mixtral"))
    assert verification.passed
    for batch in verification.checks["reads"].figures["batches"]:
        assert batch["before_bytes"] - batch["after_bytes"] == batch["formula_saved_bytes"]


def test_a_tied_model_passes_with_the_head_that_its_source_does_not_store(make_pair: MakePair):
    verification = verified(make_pair("llama", tie_word_embeddings=True))
    assert verification.passed
    assert verification.checks["structure"].figures["loaded_as"] == "LlamaForCausalLM"


def test_a_checkpoint_that_was_cast_passes_and_prompts_are_the_users(tmp_path: Path):
    random_model(small_config("llama")).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source")
    convert_checkpoint(str(tmp_path / "source"), tmp_path / "folded", options=FoldOptions(dtype="bfloat16"))
    pair = Pair(tmp_path / "source", tmp_path / "folded")
    verification = verified(pair, texts=("to be", "or not to be", "the question"))
    assert verification.passed
    assert verification.checks["greedy"].figures["continuations"] == 1 + 3 + 2


def test_a_source_with_code_of_its_own_passes_where_it_is_trusted(tmp_path: Path):
    source, folded = tmp_path / "source", tmp_path / "folded"
    random_model(small_config("llama")).save_pretrained(source)
    (source / "configuration_own.py").write_text(
        "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (source / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    with edited_json(source / "config.json") as config:
        config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    convert_checkpoint(str(source), folded, options=FoldOptions(trust_remote_code=True))
    assert verified(Pair(source, folded), trust_remote_code=True).passed
    with pytest.raises(UnsupportedModel, match="it brings its own code"):
        verified(Pair(source, folded))
    (folded / REMOTE_RUNTIME).write_text("changed")
    refused = verified(Pair(source, folded), trust_remote_code=True)
    assert refused.checks["structure"].problems == [
        f"{REMOTE_RUNTIME}: not the file that was written (its hash differs)"
    ]


def test_prompts_for_a_source_without_a_tokenizer_are_refused(llama: Pair):
    with pytest.raises(UsageError, match="its tokenizer does not load"):
        verified(llama, texts=("to be",))


@pytest.mark.parametrize(
    ("folded", "error", "line"),
    [
        (lambda folder: folder / "absent", UsageError, "absent: no such folder"),
        (lambda folder: folder / "config.json", UsageError, "config.json: no such folder"),
        (lambda folder: folder.parents[1], UsageError, "not a checkpoint: it has no config.json"),
    ],
)
def test_a_fold_that_is_no_checkpoint_is_a_usage_error(
    llama: Pair, folded: Callable[[Path], Path], error: type[Exception], line: str
):
    with pytest.raises(error, match=line):
        verify_checkpoint(str(llama.source), folded(llama.folded))


def test_a_fold_is_no_source(llama: Pair):
    with pytest.raises(UnsupportedModel, match="it is a folded checkpoint already"):
        verify_checkpoint(str(llama.folded), llama.folded)


def test_a_broken_source_is_the_sources_fault(make_pair: MakePair):
    pair = make_pair("llama")
    shard = pair.source / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(BrokenCheckpoint, match=r"model\.safetensors: cut short"):
        verified(pair)


def test_a_source_with_a_short_context_gets_short_prompts(make_pair: MakePair):
    pair = make_pair("gptj", n_positions=16)
    verification = verify_checkpoint(str(pair.source), pair.folded)
    assert verification.passed
    assert verification.checks["greedy"].figures["tokens"] == 8


def test_a_source_that_does_not_run_is_the_sources_fault(make_pair: MakePair, monkeypatch):
    pair = make_pair("llama")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ProbeFailed, match="source: does not run: it was killed"):
        verify_checkpoint(str(pair.source), pair.folded, isolated=True)


def test_what_is_not_verified_does_not_appear(make_pair: MakePair, tmp_path: Path):
    source = make_pair("llama").source
    check = require_verified()

    def sabotage(opened, folder):
        (folder / "generation_config.json").unlink()
        return check(opened, folder)

    with pytest.raises(VerificationFailed, match=r"structure: generation_config\.json: missing") as caught:
        convert_checkpoint(str(source), tmp_path / "out", check=sabotage)
    assert caught.value.verification.failed == ["structure"]
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_of_three(tmp_path: Path):
    special = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], 0)
    random_model(small_config("llama", vocab_size=3, **special)).save_pretrained(tmp_path / "source")
    assert convert_checkpoint(str(tmp_path / "source"), tmp_path / "out", check=require_verified()).verification.passed
