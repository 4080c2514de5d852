"""A verifier is believed after it has been seen to fail: every fault, and the check that names it."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from prefold.convert.checkpoint.files import CONFIG, RUNTIME, TABLE
from prefold.verify import Verification, verify_checkpoint
from prefold.verify.checks import CHECKS
from prefold.verify.probe.job import Job
from prefold.verify.probe.probe import load, measure_outputs
from prefold.verify.prompts import token_prompts
from tests.verify import faults
from tests.verify.conftest import Pair

ALL = [*CHECKS]
NORM = "model.layers.1.input_layernorm.weight"
EMBEDDING = "model.embed_tokens.weight"
K_PROJ, V_PROJ = "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"
Breakable = Callable[[Pair], Pair]


def verified(pair: Pair, **options: object) -> Verification:
    return verify_checkpoint(str(pair.source), pair.folded, **options)


def problems(verification: Verification, check: str) -> str:
    return "\n".join(verification.checks[check].problems)


@pytest.fixture(scope="module")
def unused_token(llama: Pair) -> int:
    """Return a token that is in no prompt and in no continuation of one."""
    prompts = token_prompts(llama.source, 257, None)
    job = Job(str(llama.source), "float32", "AutoModelForCausalLM", prompts)
    outputs = measure_outputs(load(job.folder, job)[0], job)
    used = {0, *chain(*prompts), *outputs["tokens"].flatten().tolist()}
    return next(token for token in range(3, 257) if token not in used)


def test_an_unbroken_checkpoint_passes_every_check(llama: Pair):
    verification = verified(llama)
    assert verification.passed
    assert verification.failed == []
    assert list(verification.checks) == ALL


@pytest.mark.parametrize(
    ("fault", "column"),
    [
        (faults.forget_norm_gain, "model.layers.0.self_attn."),
        (faults.swap_columns, "model.layers.0.self_attn."),
        (faults.roll_keys_to_next_token, K_PROJ),
        (faults.roll_keys_along_width, K_PROJ),
    ],
)
def test_a_wrong_table_with_a_right_hash_fails_rows_and_logits(
    fault: Callable[[Path, Path], None], column: str, llama: Pair, breakable: Breakable
):
    pair = breakable(llama)
    fault(pair.source, pair.folded)
    faults.hide(pair.folded)
    verification = verified(pair)
    assert {"rows", "logits"} <= set(verification.failed) <= {"rows", "logits", "greedy"}
    assert f"furthest off in {column}" in problems(verification, "rows")
    assert "prefill: max" in problems(verification, "logits")
    assert "the first module to return something else is model.layers.0." in problems(verification, "logits")


def test_columns_swapped_that_the_model_adds_up_fail_rows_alone(gpt_neox: Pair, breakable: Breakable):
    """Embedding and FFN of a parallel block are summands: exchanged, they say the same to every prompt."""
    pair = breakable(gpt_neox)
    faults.swap_columns(pair.source, pair.folded)
    faults.hide(pair.folded)
    verification = verified(pair)
    assert verification.failed == ["rows"]
    assert "97 wrong rows, the first of tokens [0, 1, 2, 3, 4]" in problems(verification, "rows")


@pytest.mark.parametrize("hidden", [True, False])
def test_a_wrong_row_of_a_token_that_no_prompt_uses_fails_rows_and_passes_every_prompt(
    hidden: bool, llama: Pair, unused_token: int, breakable: Breakable
):
    pair = breakable(llama)
    faults.spoil_row(pair.folded, unused_token)
    if hidden:
        faults.hide(pair.folded)
    verification = verified(pair)
    assert verification.failed == (["rows"] if hidden else ["structure", "rows"])
    assert f"1 wrong rows, the first of tokens [{unused_token}], furthest off in {V_PROJ}" in problems(
        verification, "rows"
    )
    assert (f"{EMBEDDING}: not the table that was written" in problems(verification, "structure")) is not hidden


def test_a_row_that_is_not_finite_fails_rows(llama: Pair, unused_token: int, breakable: Breakable):
    pair = breakable(llama)
    faults.spoil_row(pair.folded, unused_token, torch.nan)
    faults.hide(pair.folded)
    verification = verified(pair)
    assert verification.failed == ["rows"]
    assert f"1 rows are not finite, the first of tokens [{unused_token}]" in problems(verification, "rows")
    assert verification.as_json()["checks"]["rows"]["max_abs"] is None


def test_a_flipped_bit_of_an_untouched_tensor_fails_structure(llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    faults.flip_bit(pair.folded, NORM)
    verification = verified(pair)
    assert verification.failed == ["structure"]
    assert problems(verification, "structure") == f"{NORM}: not the source's bytes"


def test_a_missing_side_file_fails_structure(llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    (pair.folded / "generation_config.json").unlink()
    verification = verified(pair)
    assert verification.failed == ["structure"]
    assert problems(verification, "structure") == "generation_config.json: missing"


def test_a_missing_tensor_fails_structure_and_logits(llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    faults.drop_tensor(pair.folded, NORM)
    verification = verified(pair)
    assert {"structure", "logits"} <= set(verification.failed)
    assert verification.checks["structure"].problems == [
        f"{NORM}: missing",
        f"{NORM}: missing when transformers loads it",
    ]


def test_a_fold_of_another_model_of_the_same_shape_fails(llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    with faults.edited_tensors(pair.folded / faults.SHARD) as tensors:
        for name, tensor in tensors.items():
            tensors[name] = tensor.flip(0)
    with faults.edited_table(pair.folded) as table:
        table.copy_(table.flip(1))
    verification = verified(pair)
    assert {"structure", "rows", "logits", "greedy"} <= set(verification.failed)
    assert verification.checks["structure"].problems[0].endswith("not the source's bytes")


def _shift(config):
    config["prefold"]["folds"][0]["columns"][1]["start"] += 1


UNFIT = {
    "missing shard": (
        lambda folded: (folded / faults.SHARD).unlink(),
        f"names {faults.SHARD}, which is missing",
    ),
    "missing table": (lambda folded: (folded / TABLE).unlink(), f"names {TABLE}, which is missing"),
    "missing index": (
        lambda folded: (folded / "model.safetensors.index.json").unlink(),
        "neither model.safetensors nor model.safetensors.index.json",
    ),
    "table cut short": (lambda folded: faults.cut_short(folded / TABLE), f"{TABLE}: cut short"),
    "table without its last row": (faults.narrow_table, f"{EMBEDDING}: the table is F32 [256, 96], should be"),
    "table of another type": (faults.retype_table, f"{EMBEDDING}: the table is F64"),
    "index names a tensor that no shard has": (
        faults.name_absent_tensor,
        "names model.absent.weight, which no shard holds",
    ),
    "tensor that the index lacks": (
        lambda folded: faults.forget_tensor(folded, NORM),
        f"{NORM} is not in the index",
    ),
    "runtime edited": (faults.edit_runtime, f"{RUNTIME}: not the file that was written"),
    "runtime and its hash edited": (
        lambda folded: faults.edit_runtime(folded, hidden=True),
        f"{RUNTIME}: not the one that this version writes",
    ),
    "runtime missing": (lambda folded: (folded / RUNTIME).unlink(), f"{RUNTIME}: missing"),
    "column shifted": (faults.edit_config(_shift), f"{CONFIG}: prefold.folds.0.columns.1.start is 65, should be 64"),
    "column left out": (
        faults.edit_config(lambda config: config["prefold"]["folds"][0]["columns"].pop()),
        f"{CONFIG}: prefold.folds.0.columns.2.module is None, should be {V_PROJ!r}",
    ),
    "other end of text": (
        faults.edit_config(lambda config: config.update(eos_token_id=7)),
        f"{CONFIG}: eos_token_id is 7, should be 2",
    ),
    "other code": (
        faults.edit_config(lambda config: config["auto_map"].update(AutoModelForCausalLM="other.Model")),
        f"{CONFIG}: auto_map.AutoModelForCausalLM is 'other.Model'",
    ),
    "other type": (
        faults.edit_config(lambda config: config.update(dtype="bfloat16")),
        f"{EMBEDDING}: the table is F32 [257, 96], should be BF16",
    ),
    "no such type": (
        faults.edit_config(lambda config: config.update(dtype="int7")),
        f"{CONFIG}: dtype is 'int7', should be one of",
    ),
    "no type": (faults.edit_config(lambda config: config.pop("dtype")), f"{CONFIG}: dtype is None"),
    "section is no object": (
        faults.edit_config(lambda config: config.update(prefold="yes")),
        f"{CONFIG}: has no prefold section",
    ),
    "columns are no list": (
        faults.edit_config(lambda config: config["prefold"]["folds"][0].update(columns=3)),
        f"{CONFIG}: prefold.folds.0.columns is 3",
    ),
    "folds are no list": (
        faults.edit_config(lambda config: config["prefold"].update(folds=3)),
        f"{CONFIG}: prefold.folds is 3",
    ),
    "fold is no object": (
        faults.edit_config(lambda config: config["prefold"].update(folds=[3])),
        f"{CONFIG}: prefold.folds.0 is 3",
    ),
    "fold left out": (
        faults.edit_config(lambda config: config["prefold"].update(folds=[])),
        f"{CONFIG}: prefold.folds is []",
    ),
    "other cut": (
        faults.edit_config(lambda config: config["prefold"]["folds"][0].update(name="no such cut")),
        f"{CONFIG}: prefold.folds.0.name is 'no such cut', should be 'deepest'",
    ),
    "other side": (
        faults.edit_config(
            lambda config: config["prefold"]["folds"][0].update(side={"name": "encoder", "sees_source": False})
        ),
        f"{CONFIG}: prefold.folds.0.side.name is 'encoder', should be ''",
    ),
    "config is no JSON": (lambda folded: faults.cut_short(folded / CONFIG), f"{CONFIG}: not JSON"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_not_whole_fails_structure_and_is_not_run(name: str, llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    fault, line = UNFIT[name]
    if name == "config is no JSON":
        (pair.folded / CONFIG).write_text((pair.folded / CONFIG).read_text().rstrip())
    fault(pair.folded)
    verification = verified(pair, speed=True)
    assert verification.failed == [*ALL, "speed"]
    assert line in problems(verification, "structure")
    assert all("not run" in verification.checks[name].summary for name in verification.failed[1:])


def test_a_checkpoint_that_does_not_run_fails_structure_with_the_reason(llama: Pair, breakable: Breakable):
    pair = breakable(llama)
    with faults.edited_tensors(pair.folded / faults.SHARD) as tensors:
        tensors[NORM] = tensors[NORM][:-1]
    verification = verified(pair)
    assert verification.failed == ALL
    first, second = verification.checks["structure"].problems
    assert first == f"{NORM}: not the source's bytes"
    assert second.startswith("broken: does not run: ")


def test_a_fold_of_another_architecture_fails_structure(llama: Pair, gpt_neox: Pair):
    verification = verified(Pair(llama.source, gpt_neox.folded))
    assert verification.failed == ALL
    assert f"{CONFIG}: model_type is 'gpt_neox', should be 'llama'" in problems(verification, "structure")


def test_a_source_is_not_its_own_fold(llama: Pair):
    verification = verified(Pair(llama.source, llama.source))
    assert verification.failed == ALL
    assert problems(verification, "structure") == f"{CONFIG}: has no prefold section: not a folded checkpoint"
