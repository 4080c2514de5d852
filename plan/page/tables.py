"""The tables of a plan, as texts: the same in a terminal and on a page. Every figure says whether it is ideal."""

from collections.abc import Iterator

from prefold.common.units import spell_bytes, spell_seconds, spell_weights
from prefold.plan.advice import Advice
from prefold.plan.cost.case import Case
from prefold.plan.cost.fold import row_width, table_bytes
from prefold.plan.cost.memory import copied_heads, times_kept
from prefold.plan.estimate import Estimate
from prefold.plan.levers import Lever
from prefold.plan.model.shape import Shape

# Rows of cells, the headings first.
Cells = list[list[str]]

_BILLION, _TERA = 1e9, 1e12
_SHOWN = 12
_TERMS = {
    "compute": "weights x tokens",
    "attention": "attention scores",
    "weights": "weights from memory",
    "spared": "of these, if experts agree",
    "kv": "KV cache from memory",
    "state": "states, both ways",
    "rows": "rows from memory",
    "link_rows": "rows from elsewhere",
    "communication": "between chips",
}


_HELD = {
    "weights": "weights",
    "table": "table",
    "kv": "KV cache",
    "state": "states",
    "activations": "activations",
    "reserved": "reserved beside these",
}
_TWICE, _MEAN = 2, " in the mean"


def about(advice: Advice) -> Iterator[str]:
    """Yield the model, the pass and the chips of a plan, and the meaning of its two kinds of times."""
    case, calibration = advice.chosen.case, advice.chosen.calibration
    yield f"{case.shape.name}: {_shape(case)}"
    yield f"{_pass(case)}; weights {case.workload.weights}, KV cache {case.workload.kv}{_shared(case)}"
    yield f"{case.mesh.chips} x {case.chip.name} ({case.mesh}): {_chip(case)}"
    yield "ideal: at the chip's full rates, if all overlaps: no chip is faster; ideal sum: if nothing does"
    if calibration:
        yield f"calibrated: {calibration.source}; MFU and cost are of it"
    else:
        yield f"calibrated: {advice.chosen.uncalibrated}; MFU and cost are of the ideal time, and too good"


def _shape(case: Case) -> str:
    shape = case.shape
    active = f", {spell_weights(shape.active_weights)} active" if shape.experts else ""
    block = "parallel" if shape.parallel else "serial"
    heads = f"{shape.num_attention_heads} heads, {shape.num_key_value_heads} of keys and values"
    heads = heads if shape.attention_layers else "no attention"
    said = f"{shape.num_layers} layers, {spell_weights(shape.weights)} weights{active}, {heads}, {block} block"
    return f"{said}{_windows(shape)}{_states(shape)}{'' if shape.decodes else '; an encoder: no KV cache'}"


def _windows(shape: Shape) -> str:
    if not shape.sliding_layers:
        return ""
    return f"; {shape.sliding_layers} layers see a window of {shape.sliding_window:,} tokens"


def _states(shape: Shape) -> str:
    if not shape.state:
        return ""
    values = shape.state.recurrent + shape.state.conv
    return f"; {shape.state.layers} layers keep a state of {values:,} values, {shape.attention_layers} have a KV cache"


def _pass(case: Case) -> str:
    workload = case.workload
    if workload.phase == "decode":
        return f"one decode step of batch {workload.batch:,} at a context of {workload.context:,}"
    return f"prefill of {workload.batch:,} x {workload.context:,} tokens"


def _shared(case: Case) -> str:
    workload = case.workload
    if workload.branches == 1:
        return ""
    return f"; {workload.branches} branches share {workload.shared_prefix:,} tokens"


def _chip(case: Case) -> str:
    chip = case.chip
    peak = chip.peak_of(case.workload.compute)
    links = f", links {chip.link_bandwidth / _BILLION:,.0f} GB/s" if case.mesh.chips > 1 else ""
    if case.mesh.chips > chip.node:
        links += f" within nodes of {chip.node}, network {chip.network_bandwidth / _BILLION:,.4g} GB/s between them"
    memory = f"{spell_bytes(chip.memory_bytes)} at {chip.memory_bandwidth / _BILLION:,.0f} GB/s"
    return f"each {peak / _TERA:,.4g} TFLOP/s, {memory}{links}"


def serving_table(advice: Advice) -> Cells:
    """Return the times of a service; empty for a pass."""
    serving = advice.serving
    if serving is None:
        return []
    rates = [
        (serving.tokens_per_second_per_user, "tokens/s of each"),
        (serving.output_tokens_per_second, "tokens/s in all"),
    ]
    times = [(serving.ttft_seconds, "to the first token"), (serving.tpot_seconds, "from token to token")]
    return [
        [f"with {serving.engine}", ""],
        *([name, spell_seconds(value) if value else "-"] for value, name in times),
        ["from token to token, ideal", spell_seconds(serving.ideal_tpot_seconds)],
        *([name, f"{value:,.1f}" if value else "-"] for value, name in rates),
        ["requests that fit at a time", f"{serving.concurrency_that_fits:,}"],
    ]


def serving_line(advice: Advice) -> str:
    """Return what keeps a service from its times; empty where nothing does."""
    serving = advice.serving
    if serving is None:
        return ""
    if serving.uncalibrated:
        return f"no times of serving: {serving.uncalibrated}"
    return "" if serving.fits else "not all requests fit at a time: the others wait, and their first tokens with them"


def layouts_table(advice: Advice) -> Cells:
    """Every layout of the source, the cheapest first."""
    head = ["FFN", "attention", *_headings(advice.chosen.basis), "bound,\nideal", "fits"]
    return [head, *(_layout(each, advice.chosen) for each in advice.plan.estimates)]


def _layout(each: Estimate, chosen: Estimate) -> list[str]:
    fits = f"{_fits(each)}, chosen" if each is chosen else _fits(each)
    return [each.case.layout, each.case.sharding, *_figures(each, chosen.basis), each.terms.bound, fits]


def choice_line(advice: Advice) -> str:
    """Return why the layout that is estimated to be fastest is not chosen; empty where it is."""
    fastest = advice.plan.fastest
    if fastest is advice.chosen or not advice.chosen.memory.fits:
        return ""
    rule = "such an estimate cannot tell close layouts apart, so they are chosen by what the paper's volumes say"
    if fastest.case.layout == "1d-ws":
        rule = "1d-ws stores weights otherwise than all other layouts, between which prefill and decode may change"
    return f"{fastest.case.layout}, {fastest.case.sharding} is estimated to be faster; {rule}"


def _headings(basis: str) -> list[str]:
    return ["ideal", "ideal\nsum", "calibrated", f"MFU,\n{basis}", f"chip-s/token,\n{basis}", "memory\nper chip"]


def _figures(each: Estimate, basis: str) -> list[str]:
    """MFU and cost are left out where they would be of another basis than the column."""
    times = [spell_seconds(each.ideal_seconds), spell_seconds(each.ideal_sum_seconds), _calibrated(each)]
    of_basis = [f"{each.mfu:.1%}", f"{each.chip_seconds_per_token:#.4g}"] if each.basis == basis else ["-", "-"]
    return [*times, *of_basis, spell_bytes(each.memory.total)]


def _calibrated(each: Estimate) -> str:
    return "-" if each.calibrated_seconds is None else spell_seconds(each.calibrated_seconds)


def _fits(each: Estimate) -> str:
    return "yes" if each.memory.fits else f"{spell_bytes(each.memory.missing)} over"


def source_and_folded(advice: Advice) -> Cells:
    """Where the time goes in the chosen layout, of source and folded."""
    both = advice.chosen, advice.twin
    basis = advice.chosen.basis
    seconds = {label: [getattr(each.terms, term) for each in both] for term, label in _TERMS.items()}
    terms = [[f"{label}, ideal", *map(spell_seconds, found)] for label, found in seconds.items() if any(found)]
    figures = [
        ["ideal: all of it overlaps", *(spell_seconds(each.ideal_seconds) for each in both)],
        ["ideal sum: nothing does", *(spell_seconds(each.ideal_sum_seconds) for each in both)],
        ["calibrated", *(_calibrated(each) for each in both)],
        [f"MFU, {basis}", *(f"{each.mfu:.2%}" for each in both)],
        [f"chip-s/token, {basis}", *(f"{each.chip_seconds_per_token:#.4g}" for each in both)],
        *_memory(both),
        ["memory per chip", *(spell_bytes(each.memory.total) for each in both)],
        ["fits", *(_fits(each) for each in both)],
    ]
    return [[f"{advice.chosen.case.layout}, {advice.chosen.case.sharding}", "source", "folded"], *terms, *figures]


def _memory(both: tuple[Estimate, Estimate]) -> list[list[str]]:
    """What a chip's memory holds, part by part; what is reserved is no part of the sum."""
    found = {label: [getattr(each.memory, part) for each in both] for part, label in _HELD.items()}
    return [[f"{label}, per chip", *map(spell_bytes, parts)] for label, parts in found.items() if any(parts)]


def copies_lines(advice: Advice) -> list[str]:
    """Return which heads are kept more than once in the chosen layout, since chips do not divide them."""
    return [
        f"{heads} {name} on {split} chips: {_times(times_kept(split, heads))}"
        for name, heads, split in copied_heads(advice.chosen.case)
    ]


def _times(times: float) -> str:
    return "each is kept twice" if times == _TWICE else f"each is kept {times:.3g} times{_MEAN if times % 1 else ''}"


def table_line(advice: Advice) -> str:
    """Return the size and place of the table, and the batch up to which its rows are fewer bytes."""
    shape, limit = advice.chosen.case.shape, advice.break_even_batch
    row = f"{row_width(shape):,} values of {advice.fold.dtype} in a row"
    size = f"{row}, {spell_bytes(table_bytes(shape, advice.fold))}"
    most = "fewer bytes at every batch" if limit is None else f"fewer bytes up to {limit:,} tokens per pass"
    return f"table on {advice.fold.placement}: {size}; {most}"


def levers_table(advice: Advice) -> Cells:
    """Every lever, the one that saves most first."""
    basis = advice.chosen.basis
    head = ["lever", f"saves per pass,\n{basis}", "share", "note"]
    notes = ["; ".join(filter(None, [each.note, _other_basis(each, basis)])) for each in advice.levers]
    saved = [[each.name, spell_seconds(each.seconds_saved), f"{each.share:.2%}"] for each in advice.levers]
    return [head, *([*cells, note] for cells, note in zip(saved, notes, strict=True))]


def _other_basis(lever: Lever, basis: str) -> str:
    return "" if lever.basis == basis else f"of {lever.basis} times"


def points_table(advice: Advice) -> Cells:
    """The points of the sweep that no other beats in time and in MFU."""
    basis = advice.chosen.basis
    head = ["chips", "batch", "FFN", "attention", *_headings(basis)]
    return [head, *(_point(each) for each in _some(advice.front, advice.chosen))]


def _some(front: list[Estimate], chosen: Estimate) -> list[Estimate]:
    """Return a dozen of them, evenly taken, with both ends and the chosen one."""
    step = max(1, -(-len(front) // _SHOWN))
    kept = {*range(0, len(front), step), len(front) - 1}
    return [each for index, each in enumerate(front) if index in kept or each.case == chosen.case]


def _point(each: Estimate) -> list[str]:
    case = each.case
    where = [f"{case.mesh.chips} ({case.mesh})", f"{case.workload.batch:,}", case.layout, case.sharding]
    return [*where, *_figures(each, each.basis)]


def unfit_line(advice: Advice) -> str:
    """Return how many points of the sweep do not fit; empty where all do."""
    unfit = [each for each in advice.sweep if not each.memory.fits]
    if not unfit:
        return ""
    least = min(unfit, key=lambda each: each.memory.missing)
    many = f"{len(unfit)} of {len(advice.sweep)} that were tried do not fit"
    return f"{many}; the nearest has batch {least.case.workload.batch:,} and is {least.memory.excess}"
