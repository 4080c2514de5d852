"""``prefold tree score``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefold.cli.options import DType, Json, Revision, TrustRemoteCode, parse_dtype
from prefold.cli.tree_inputs import (
    Prompt,
    PromptFile,
    are_tokens,
    load,
    read_json,
    read_prompt,
    read_text,
    require_tokens,
)
from prefold.common.errors import UsageError

if TYPE_CHECKING:
    from prefold.tree import Scored


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model: a folder or a hub id.")],
    prompt_file: PromptFile,
    continuations: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="The continuations: a line for each, with the space it begins with, or a JSON list (.json) of texts or"
            " of lists of token ids.",
        ),
    ],
    dtype: DType = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Score continuations of a prompt, which is read once for all of them: log-likelihoods, and the likeliest.

    The tokens of a continuation are those of prompt and continuation together, behind the prompt's; where the two
    cannot be told apart, those of the continuation alone.

    Example: `prefold tree score EleutherAI/pythia-70m --prompt-file question.txt --continuations answers.txt`
    """
    wanted = parse_dtype(dtype)
    texts = _read_continuations(continuations)
    from prefold.cli.show.show import note, show_json
    from prefold.convert.checkpoint import open_source
    from prefold.tree import attend_by
    from prefold.tree import score as score_continuations

    source = open_source(model, revision)
    prompt = read_prompt(source, model, prompt_file, trust_remote_code=trust_remote_code)
    rows = [_tokens_of(text, prompt, continuations) for text in texts]
    loaded = load(source, wanted, trust_remote_code=trust_remote_code)
    require_tokens(prompt.tokens, loaded, prompt_file)
    for row in rows:
        require_tokens(row, loaded, continuations)
    attend_by(loaded, "prefold_tree")
    note(f"{model}: {len(rows)} continuations of a prompt of {len(prompt.tokens)} tokens")
    figures = _figures(model, prompt.tokens, texts, score_continuations(loaded, prompt.tokens, rows))
    if as_json:
        show_json(figures)
    else:
        _show(figures)


def _read_continuations(file: Path) -> list[Any]:
    content = read_text(file)
    found = read_json(content, file) if file.suffix == ".json" else [line for line in content.splitlines() if line]
    if not isinstance(found, list) or not found:
        raise UsageError(f"{file}: no continuation in it")
    return found


def _tokens_of(text: Any, prompt: Prompt, file: Path) -> list[int]:
    if are_tokens(text):
        return text
    if not isinstance(text, str):
        raise UsageError(f"{file}: a continuation is a text, or a list of token ids")
    if prompt.tokenizer is None:
        raise UsageError(f"{file}: texts need a prompt that is text, and {prompt.file} has token ids")
    whole = list(prompt.tokenizer(prompt.text + text)["input_ids"])
    if whole[: len(prompt.tokens)] == prompt.tokens:
        return whole[len(prompt.tokens) :]
    return list(prompt.tokenizer(text, add_special_tokens=False)["input_ids"])


def _figures(model: str, prompt: list[int], texts: list[Any], scored: "list[Scored]") -> dict[str, Any]:
    return {
        "model": model,
        "prompt_tokens": len(prompt),
        "best": max(range(len(scored)), key=lambda at: scored[at].log_likelihood),
        "continuations": [
            {
                "text": text if isinstance(text, str) else None,
                "tokens": each.tokens,
                "log_likelihood": each.log_likelihood,
                "log_probs": each.log_probs,
                "is_greedy": each.is_greedy,
            }
            for text, each in zip(texts, scored, strict=True)
        ],
    }


def _show(figures: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from prefold.cli.show.show import out

    table = Table("", "log-likelihood", "per token", "tokens", "greedy", "continuation", box=None)
    for number, each in enumerate(figures["continuations"]):
        likelihood, count = each["log_likelihood"], len(each["tokens"])
        text = " ".join(map(str, each["tokens"])) if each["text"] is None else each["text"]
        table.add_row(
            "best" if number == figures["best"] else "",
            *(f"{likelihood:.4f}", f"{likelihood / count:.4f}", str(count), "yes" if each["is_greedy"] else "no"),
            Text(text),
        )
    out.print(table)
