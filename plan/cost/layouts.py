"""The layouts of the weights over chips, and the collectives of each.

Pope et al. 2022, sections 3.2 and A.2. E is split over the x axis, F and the heads over y and z. All counts are
elements, as in the paper, since weights and activations differ in bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, get_args

from prefold.common.errors import UnknownName
from prefold.plan.chip.hardware import Mesh
from prefold.plan.errors import Infeasible

Kind = Literal["all-gather", "reduce-scatter", "all-to-all"]
Layout = Literal["1d-ws", "2d-ws", "wg-x", "wg-xy", "wg-xyz"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
STATIONARY: tuple[Layout, ...] = ("1d-ws", "2d-ws")


@dataclass(frozen=True)
class Collective:
    """A message of all chips of a group to each other.

    Attributes:
        axes: chips of the group, along each axis that it has more than one of.
        elements: on a chip afterwards (all-gather), or before (the others): D in section A.1.
        weights: weights are sent, and not activations.
        beside: it runs beside another one or the FFN, and its start is not counted: keys and values, by themselves.
    """

    kind: Kind
    axes: tuple[int, ...]
    elements: float
    weights: bool = False
    beside: bool = False

    @property
    def over(self) -> int:
        """Chips of the group: K in section A.1."""
        return prod(self.axes)

    @property
    def phases(self) -> int:
        """Times that it starts: rings go axis by axis, while an all-to-all goes straight from chip to chip."""
        if self.beside:
            return 0
        return min(1, len(self.axes)) if self.kind == "all-to-all" else len(self.axes)

    def volume(self, *, exact: bool = False) -> float:
        """Elements per chip; the paper takes (K-1)/K for 1, ``exact`` does not."""
        return self.elements * (self.over - 1) / self.over if exact else self.elements


@dataclass(frozen=True)
class Part:
    """Matrices on the way in and on the way out, and what lies between them, as of an FFN.

    Attributes:
        entering: values of a token behind the matrices on the way in; 0 without these, as of a folded attention.
        leaving: values of a token before those on the way out.
        key_values: of the values that enter, those of heads of keys and values, which are not split.
        heads: such heads; 0 where attention needs no more of them on a chip than of any other value.
        attends: attention lies between them.
    """

    entering: float
    leaving: float
    weights: float
    key_values: float = 0
    heads: int = 0
    attends: bool = False

    def kept(self, ways: int) -> float:
        """Keys and values of a token on a chip, where heads are split ``ways`` ways."""
        return ceil(self.heads / ways) * self.key_values / self.heads if self.heads else self.key_values / ways

    def sharing(self, chips: int, had: int, needed: int) -> int:
        """Return how many of ``chips`` send each other keys and values.

        Heads were split ``had`` ways over these chips before, and attention needs them ``needed`` ways.
        """
        return -(-chips * ceil(self.heads / needed) // ceil(self.heads / had)) if self.heads else 1


def ffn(hidden_size: int, intermediate_size: int, *, gated: bool = False) -> Part:
    """Return an FFN; gated, it has 2F on its way in, in one matrix. The paper's formulas are for the plain one."""
    entering = (2 if gated else 1) * intermediate_size
    return Part(entering, intermediate_size, hidden_size * (entering + intermediate_size))


def gathered_axes(layout: Layout) -> str:
    """Return the names of the axes that weights are gathered over: none where they stay."""
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, list(LAYOUTS))
    return layout.removeprefix("wg-") if layout.startswith("wg-") else ""


def chips_gathered(layout: Layout, mesh: Mesh) -> int:
    """Return N, the chips that weights are gathered over: 1 where they stay."""
    return prod(mesh.along(gathered_axes(layout)))


def rest_axes(layout: Layout) -> str:
    """Return the names of the axes that weights are not gathered over."""
    return "".join(axis for axis in "xyz" if axis not in gathered_axes(layout))


def distinct(mesh: Mesh) -> list[Layout]:
    """Return the layouts that differ on a mesh: an axis of one chip gathers and scatters nothing."""
    needs: dict[Layout, bool] = {
        "1d-ws": True,
        "2d-ws": mesh.x > 1 and mesh.y * mesh.z > 1,
        "wg-x": mesh.x > 1 and mesh.y * mesh.z > 1,
        "wg-xy": mesh.y > 1 and mesh.z > 1,
        "wg-xyz": mesh.chips > 1,
    }
    return [layout for layout in LAYOUTS if needs[layout]]


def require_batch(layout: Layout, mesh: Mesh, batch: int) -> None:
    """Raise ``Infeasible`` for a batch that cannot be shared out: gathered weights meet other sequences elsewhere."""
    ways = chips_gathered(layout, mesh)
    chips = f"the {ways} chips that its weights are gathered over"
    if batch < ways:
        short = f"batch {batch} is too small; batch {ways} would do"
        raise Infeasible(f"{layout} needs a sequence for each of {chips}: {short}")
    if batch % ways:
        below = batch // ways * ways
        uneven = f"batch {batch} is no multiple of {ways}; batch {below} or {below + ways} would do"
        raise Infeasible(f"{layout} needs equally many sequences on each of {chips}: {uneven}")


def collectives(layout: Layout, mesh: Mesh, tokens: float, hidden_size: int, part: Part) -> list[Collective]:
    """Return what is sent for one part of one layer; ``tokens`` are BL, ``hidden_size`` is E in the paper."""
    if layout == "1d-ws":
        found = _stationary_1d(mesh, tokens * hidden_size, part)
    elif layout == "2d-ws":
        found = _stationary_2d(mesh, tokens, hidden_size, part)
    else:
        found = _gathered(layout, mesh, tokens, hidden_size, part)
    return [each for each in found if each.axes and each.elements > 0]


def _stationary_1d(mesh: Mesh, residual: float, part: Part) -> Iterator[Collective]:
    """Section 3.2.1."""
    if part.entering:
        yield Collective("all-gather", mesh.along("xyz"), residual)
    if part.leaving:
        yield Collective("reduce-scatter", mesh.along("xyz"), residual)


def _stationary_2d(mesh: Mesh, tokens: float, hidden_size: int, part: Part) -> Iterator[Collective]:
    """Section A.2.1; fewer heads of keys and values than chips are reduced on more than one, and gathered whole."""
    plane, line = mesh.along("yz"), mesh.along("x")
    split = prod(plane)
    if part.entering:
        yield Collective("all-gather", plane, tokens * hidden_size / mesh.x)
        evenly = (part.entering - part.key_values) / split
        yield Collective("reduce-scatter", line, tokens * (evenly + part.kept(split)))
        shared = first(line, part.sharing(mesh.x, split, mesh.chips))
        yield Collective("all-gather", shared, tokens * part.kept(mesh.chips), beside=True)
    if part.leaving:
        yield Collective("all-gather", line, tokens * part.leaving / split)
        yield Collective("reduce-scatter", plane, tokens * hidden_size / mesh.x)


def _gathered(layout: Layout, mesh: Mesh, tokens: float, hidden_size: int, part: Part) -> Iterator[Collective]:
    """Section A.2.2; gathered over all chips, activations stay where they are."""
    over, rest = mesh.along(gathered_axes(layout)), mesh.along(rest_axes(layout))
    residual = tokens * hidden_size
    yield from _gathered_weights(mesh, over, rest, hidden_size, part)
    if part.entering:
        yield Collective("all-gather", rest, residual / prod(over))
    if part.leaving:
        yield Collective("reduce-scatter", rest, residual / prod(over))


def _gathered_weights(
    mesh: Mesh, over: tuple[int, ...], rest: tuple[int, ...], hidden_size: int, part: Part
) -> Iterator[Collective]:
    each, split = part.weights / (part.entering + part.leaving), prod(rest)
    evenly, keys = each * part.entering / split, 0.0
    if part.heads and split > 1:
        evenly -= hidden_size * part.key_values / split
        keys = hidden_size * part.kept(split)
    shared = first(over, part.sharing(mesh.x, mesh.y * mesh.z, split))
    if shared == over:
        evenly, keys = evenly + keys, 0.0
    yield Collective("all-gather", over, evenly, weights=True)
    yield Collective("all-gather", shared, keys, weights=True, beside=True)
    yield Collective("all-gather", over, each * part.leaving / split, weights=True)


def first(axes: tuple[int, ...], chips: int) -> tuple[int, ...]:
    """Return the axes that a group of so many chips lies along, the last of them perhaps in part."""
    found: list[int] = []
    for axis in axes:
        if chips > 1:
            found.append(min(axis, chips))
            chips = -(-chips // axis)
    return tuple(found)


def volume(sent: list[Collective], *, exact: bool = False) -> float:
    """Elements per chip of all of them."""
    return sum(each.volume(exact=exact) for each in sent)
