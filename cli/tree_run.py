"""``prefold tree run``."""

from operator import eq
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefold.cli.options import DType, Json, Revision, TrustRemoteCode, parse_dtype
from prefold.cli.tree_inputs import PromptFile, load, read_prompt, require_tokens

if TYPE_CHECKING:
    from prefold.tree import Asked, Sampled


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model: a folder or a hub id.")],
    prompt_file: PromptFile,
    branches: Annotated[int, typer.Option(metavar="N", min=1, help="Continuations to sample.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(metavar="T", min=1, help="Tokens of each, at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.01, help="Divides the logits before sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    max_pages: Annotated[
        int | None, typer.Option(metavar="P", min=1, help="Pages of 16 tokens that the tree may have; any number else.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Also let transformers generate the same by itself.")
    ] = True,
    dtype: DType = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> None:
    """Sample several continuations of a prompt, whose keys and values are stored once and read once for all of them.

    Prints the continuations, the bytes of keys and values that attention read, and the time, beside transformers' own.

    Example: `prefold tree run EleutherAI/pythia-70m --prompt-file prompt.txt --branches 16 --max-new-tokens 100`
    """
    wanted = parse_dtype(dtype)
    from prefold.cli.show.show import note, show_json
    from prefold.convert.checkpoint import open_source
    from prefold.tree import Asked, sample_plain, sample_tree

    source = open_source(model, revision)
    prompt = read_prompt(source, model, prompt_file, trust_remote_code=trust_remote_code)
    loaded = load(source, wanted, trust_remote_code=trust_remote_code)
    require_tokens(prompt.tokens, loaded, prompt_file)
    asked = Asked(prompt.tokens, branches, max_new_tokens, temperature, seed, max_pages)
    note(f"{model}: {branches} branches from a prompt of {len(prompt.tokens)} tokens")
    tree = sample_tree(loaded, asked)
    plain = sample_plain(loaded, asked) if compare else None
    texts = prompt.tokenizer.batch_decode(tree.continuations) if prompt.tokenizer else None
    figures = _figures(model, asked, tree, plain, texts)
    if as_json:
        show_json(figures)
    else:
        _show(figures)


def _figures(
    model: str, asked: "Asked", tree: "Sampled", plain: "Sampled | None", texts: list[str] | None
) -> dict[str, Any]:
    rows = tree.continuations.tolist()
    same = None if plain is None else sum(map(eq, rows, plain.continuations.tolist()))
    return {
        "model": model,
        "prompt_tokens": len(asked.prompt),
        "branches": asked.branches,
        "max_new_tokens": asked.new,
        "tree": _cost(tree),
        "transformers": None if plain is None else _cost(plain),
        "same_continuations": same,
        "continuations": [{"tokens": row, "text": None if texts is None else texts[at]} for at, row in enumerate(rows)],
    }


def _cost(sampled: "Sampled") -> dict[str, Any]:
    return {
        "prefill_seconds": sampled.prefill_seconds,
        "decode_seconds": sampled.decode_seconds,
        "decode_steps": sampled.steps,
        "read_bytes": sampled.read_bytes,
        "cache_bytes": sampled.cache_bytes,
    }


def _show(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from prefold.cli.show.show import out, say

    for number, each in enumerate(figures["continuations"], 1):
        said = each["text"] if each["text"] is not None else " ".join(map(str, each["tokens"]))
        say(f"{number}: {said}")
    table = Table("", "keys and values read", "held", "prefill", "decode", "per step", box=None)
    for name in ("tree", "transformers"):
        if figures[name]:
            table.add_row(name, *_cells(figures[name]))
    out.print(table)
    if figures["transformers"]:
        say(_verdict(figures))


def _cells(cost: dict[str, Any]) -> list[str]:
    step = cost["decode_seconds"] / max(1, cost["decode_steps"])
    return [
        f"{cost['read_bytes'] / 1e6:,.1f} MB",
        f"{cost['cache_bytes'] / 1e6:,.1f} MB",
        f"{cost['prefill_seconds']:.2f} s",
        f"{cost['decode_seconds']:.2f} s",
        f"{step * 1e3:.1f} ms",
    ]


def _verdict(figures: dict[str, Any]) -> str:
    tree, plain = figures["tree"], figures["transformers"]
    reads = plain["read_bytes"] / tree["read_bytes"] if tree["read_bytes"] else 1.0
    times = plain["decode_seconds"] / tree["decode_seconds"] if tree["decode_seconds"] else 1.0
    said = f"{figures['same_continuations']} of {figures['branches']} continuations are the same"
    return f"{reads:.1f} times fewer bytes read, decoding {times:.2f} times as fast; {said}"
