"""``prefold plan``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from prefold.cli.options import Json, Revision
from prefold.cli.plan_inputs import (
    asked_mesh,
    fit_pass,
    open_chip,
    open_shape,
    parse_service,
    parse_target,
    require_acceptance,
    space_of,
)

if TYPE_CHECKING:
    from prefold.plan import Advice, Phase, Placement


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name that `prefold shapes` lists, a folder, a config.json or a hub id (org/name)."
        ),
    ],
    hardware: Annotated[
        str, typer.Option(metavar="NAME", help="A name that `prefold hardware` lists, a TOML file of a chip, or this.")
    ],
    chips: Annotated[
        int | None, typer.Option(metavar="N", help="How many; the fewest that the model fits on if not given.")
    ] = None,
    mesh: Annotated[str | None, typer.Option(metavar="XxYxZ", help="How they are joined, as 4x4x4.")] = None,
    phase: Annotated[
        str | None,
        typer.Option(
            metavar="PHASE",
            help="One forward pass: prefill, or a step of decode; decode if not given, but of encoders.",
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="B", help="Sequences; 1 if not given.")] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="Tokens of each: of the prompt, or cached when a step decodes one more; 2048 if not given, or as"
            " many as the model has positions for.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Stored as bf16, fp16, fp8, int8, int4, fp4 or mxfp4; as the checkpoint's own if not given, or bf16.",
        ),
    ] = None,
    kv: Annotated[
        str | None, typer.Option(metavar="TYPE", help="What the KV cache is stored as; bf16, or the engine's own.")
    ] = None,
    branches: Annotated[int, typer.Option(metavar="N", help="Sequences that continue one prefix.")] = 1,
    shared_prefix: Annotated[int, typer.Option(metavar="T", help="Tokens that branches have in common.")] = 0,
    memory_share: Annotated[
        float, typer.Option(metavar="SHARE", help="Of a chip's memory that may be used; a runtime takes the rest.")
    ] = 0.9,
    table: Annotated[str, typer.Option(help="Where the folded model's table lies: device, host or disk.")] = "device",
    prompt: Annotated[
        int | None, typer.Option(metavar="T", help="Plan serving: tokens of each request's prompt; not with --batch.")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(metavar="T", help="With --prompt: tokens that are generated for each request.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="With --prompt: requests that are served at a time.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --prompt: vllm, sglang or tensorrt-llm; vllm if not given."),
    ] = None,
    acceptance: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Try a draft, too, of which each token is accepted with this probability."),
    ] = None,
    latency_target: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Find the cheapest plan whose pass, or time from token to token, takes at most this, e.g. 30ms.",
        ),
    ] = None,
    ttft_target: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --prompt: and whose first token takes at most this, e.g. 500ms."),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            metavar="CHIP_SECONDS",
            help="Find the fastest plan whose token costs at most this. A target tries all chips, batches and types"
            " that are not given.",
        ),
    ] = None,
    gated: Annotated[
        bool | None, typer.Option("--gated/--not-gated", help="The FFN has a gate; for configs that leave it open.")
    ] = None,
    parallel: Annotated[
        bool | None, typer.Option("--parallel/--serial", help="Attention and FFN read the same input, or do not.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="With --hardware this, measure the machine again; it takes seconds.")
    ] = False,
    revision: Revision = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the sweep and the roofline: .svg, .png or .html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Calculate where the time of a forward pass goes, which layout over chips to choose, and what would help.

    No weights are read. Ideal times are bounds from the chip's full rates; calibrated ones are fitted to published
    measurements, where there are any; each figure is marked. With --prompt, --new-tokens and --concurrency it is
    serving that is planned: times to the first token and from token to token.

    Examples:
    - `prefold plan llama3.1-70b --hardware h100 --chips 4 --prompt 1024 --new-tokens 1024 --concurrency 64`
    - `prefold plan llama3.1-70b --hardware h100 --prompt 4000 --new-tokens 500 --latency-target 25ms --ttft-target 2s`
    - `prefold plan palm-540b --hardware tpu-v4 --chips 64 --phase decode --batch 512 --context 2048`
    """
    from prefold.plan import Workload, advise, table_for, types_to_try

    if plot:
        from prefold.common.figures import require_plot
        from prefold.plan.page import KINDS

        require_plot(plot, KINDS)
    pass_given = phase is not None or batch is not None or context is not None or branches > 1
    service = parse_service(prompt, new_tokens, concurrency, engine, pass_given=pass_given)
    target = parse_target(latency_target, max_cost, ttft_target, service)
    require_acceptance(acceptance)
    if service:
        batch, context = concurrency, service.context
    sequences, length = branches if batch is None else batch, 2048 if context is None else context
    asked = (cast("Phase", phase or "decode"), sequences, length, weights or "bf16", kv or "bf16")
    workload = Workload(*asked, branches=branches, shared_prefix=shared_prefix, memory_share=memory_share)
    table_for(workload, cast("Placement", table))
    chip, calibrations = open_chip(hardware, refresh=refresh)
    joined = asked_mesh(chip, chips, mesh)
    shape = open_shape(model, revision, gated=gated, parallel=parallel)
    workload = fit_pass(workload, shape, phase, context, weights, kv, service)
    types = types_to_try(chip, workload.weights, workload.kv, fixed=(weights is not None, kv is not None))
    space = space_of(shape, chip, workload, joined, batch, types if target else (), calibrations)
    fold = table_for(workload, cast("Placement", table))
    advice = advise(space, fold, target, service=service, acceptance=acceptance)
    _tell(advice, plot, as_json=as_json)
    advice.require_room()


def _tell(advice: "Advice", plot: Path | None, *, as_json: bool) -> None:
    from prefold.cli.show.plan import show_advice
    from prefold.cli.show.show import note, show_json

    if as_json:
        show_json(advice.as_json())
    else:
        show_advice(advice)
    if plot:
        from prefold.plan.page import write_plot

        write_plot(advice, plot)
        note(f"drawn as {plot}")
