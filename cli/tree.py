"""``prefold tree``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefold.cli.options import Json, Revision
from prefold.cli.tree_run import run
from prefold.cli.tree_score import score

if TYPE_CHECKING:
    from prefold.tree import Attention, Counted, Forest

tree = typer.Typer(name="tree", no_args_is_help=True, help="Trees of branches that share a prefix.")


@tree.callback()
def _trees() -> None:
    """Count, or run, attention over branches that share a prefix: read once for all of them, not once for each."""


tree.command()(run)
tree.command()(score)


@tree.command()
def count(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TREE",
            help="A JSON file of trees, or a generator: few-shot:prompt=4000,branches=20,steps=400; n-best, beam,"
            " speculative and levels likewise.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A name that `prefold shapes` lists, a folder, a config.json or a hub id (org/name)."
        ),
    ] = "llama3-8b",
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="sequence-wise, medusa, node, node-chunk or flatten; may be given several times. All if not given.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N complete trees of a file; all if not given.")
    ] = None,
    prompt: Annotated[
        int | None,
        typer.Option(
            metavar="T", min=1, max=1_000_000_000, help="Tokens of every tree's prompt, in place of those of its root."
        ),
    ] = None,
    cap: Annotated[
        int | None,
        typer.Option(metavar="T", min=1, help="The longest output: steps end one before it. None if not given."),
    ] = None,
    revision: Revision = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw branches, tokens and reads over time: .svg or .png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the bytes that attention over a tree reads, by scheme; figures of a file of trees are means per tree.

    No model is needed and none is loaded: a tree says which segments are there at each step, and a model's shape how
    many bytes a token's keys and values are.

    Example: `prefold tree count few-shot:prompt=4000,branches=20,steps=400 --model llama3-8b`
    """
    from dataclasses import replace

    from prefold.cli.show.show import note
    from prefold.tree import count_trees, open_trees

    if plot:
        from prefold.common.figures import require_plot
        from prefold.tree.count import KINDS

        require_plot(plot, KINDS)
    attention = _attention(model, revision)
    forest = open_trees(source, limit=limit)
    if limit is not None and limit > forest.complete:
        note(f"{source}: {forest.complete} complete trees are all there are")
    if prompt is not None:
        forest = replace(forest, trees=tuple(replace(each, prompt=prompt) for each in forest.trees))
    counted = count_trees(forest.trees, attention, schemes=scheme or (), cap=cap)
    _tell(forest, model, counted, plot, as_json=as_json)


def _attention(model: str, revision: str | None) -> "Attention":
    """Return the attention of a model, whose FFN does not matter here."""
    from prefold.cli.plan_inputs import open_shape
    from prefold.tree import Attention, Uncountable

    shape = open_shape(model, revision, gated=False, parallel=False)
    if shape.latent:
        raise Uncountable(
            f"{model}: its keys and values are stored compressed, for all heads; these formulas count heads"
        )
    heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
    windows = {"sliding_layers": shape.sliding_layers, "sliding_window": shape.sliding_window}
    return Attention(shape.attention_layers, *heads, **windows)


def _tell(forest: "Forest", model: str, counted: "Counted", plot: Path | None, *, as_json: bool) -> None:
    from prefold.cli.show.show import note, show_json
    from prefold.cli.show.tree import show_counted, tree_json

    if as_json:
        show_json(tree_json(forest, model, counted))
    else:
        show_counted(forest, model, counted)
    if plot:
        from prefold.tree.count import write_picture

        write_picture(counted, f"{forest.name}: {model}", plot)
        note(f"drawn as {plot}")
