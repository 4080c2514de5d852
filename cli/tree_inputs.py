"""The inputs of commands that run a tree: a model, and files of text or token ids."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from prefold.common.errors import UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prefold.convert.checkpoint import Source

PromptFile = Annotated[
    Path,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="The prompt: text, or a JSON list of token ids (.json)."
    ),
]


def read_text(file: Path) -> str:
    """Return a file's text; ``UsageError`` where it is none."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not text in UTF-8") from error


@dataclass(frozen=True)
class Prompt:
    """A prompt with its file's text; ``tokenizer`` is None for a file of token ids."""

    file: Path
    text: str
    tokens: list[int]
    tokenizer: Any


def read_prompt(source: "Source", model: str, file: Path, *, trust_remote_code: bool) -> Prompt:
    """Return the prompt in a file; ``UsageError`` where it is none."""
    content = read_text(file)
    if file.suffix == ".json":
        return Prompt(file, content, _read_tokens(content, file), None)
    tokenizer = _tokenizer(source, model, trust_remote_code=trust_remote_code)
    return Prompt(file, content, list(tokenizer(content)["input_ids"]), tokenizer)


def read_json(content: str, file: Path) -> Any:
    """Return the contents of a JSON file."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise UsageError(f"{file}: not JSON: {error}") from error


def _read_tokens(content: str, file: Path) -> list[int]:
    found = read_json(content, file)
    if not are_tokens(found):
        raise UsageError(f"{file}: not a JSON list of token ids")
    return found


def are_tokens(found: Any) -> TypeGuard[list[int]]:
    """Return whether something read from JSON is a list of whole numbers."""
    return isinstance(found, list) and all(type(each) is int for each in found)


def _tokenizer(source: "Source", model: str, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    where = {"revision": source.revision} if source.revision else {}
    name = model if source.revision else str(source.folder)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **where)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        reason = f"its tokenizer does not load; a .json file of token ids needs none: {one_line(error)}"
        raise UsageError(f"{model}: {reason}") from error


def load(source: "Source", dtype: Any, *, trust_remote_code: bool) -> "PreTrainedModel":
    """Return a causal language model; ``UnsupportedModel`` where transformers loads none."""
    from transformers import AutoModelForCausalLM, PreTrainedModel

    from prefold.convert import ModelFailed, UnsupportedModel, model_code

    if "prefold" in source.config and not trust_remote_code:
        raise UsageError(f"{source.name}: a folded checkpoint runs on the module beside it: pass --trust-remote-code")
    try:
        with model_code():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype or "auto", trust_remote_code=trust_remote_code, use_safetensors=True
            )
    except ModelFailed as failure:
        reason = f"{source.name}: no causal language model that transformers loads: {failure}"
        raise UnsupportedModel([reason]) from failure
    model: PreTrainedModel = loaded.eval()
    return model


def require_tokens(prompt: list[int], model: "PreTrainedModel", file: Path) -> None:
    """Refuse what is no prompt of a model."""
    size = model.config.get_text_config(decoder=True).vocab_size
    if not prompt:
        raise UsageError(f"{file}: no token in it")
    wrong = max(prompt) if max(prompt) >= size else min(prompt)
    if not 0 <= wrong < size:
        raise UsageError(f"{file}: token {wrong} of a vocabulary of {size}")
