"""Find, by experiment, which modules of a model's first block fold.

The same tokens are run in another order and at other positions. A module whose output rows follow their
tokens is token-pure. Nothing here knows the name of an architecture.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from prefold.convert.errors import UnsupportedModel
from prefold.convert.experiment.explain import ModuleDependency, explain, reasons
from prefold.convert.experiment.forms import PLAIN, Form
from prefold.convert.experiment.separable import Separable, find_separable
from prefold.convert.experiment.token_pure import (
    Passes,
    TokenPureModule,
    find_summed,
    find_unread_and_mergeable,
    pure_modules,
    run_passes,
)
from prefold.convert.experiment.trace import Overrides, trace
from prefold.convert.model.inputs import Side

DEEPEST = "deepest"


@dataclass(frozen=True)
class Discovery:
    """One cut that the experiment found.

    Attributes:
        name: ``deepest``, or the module that this cut stores and a deeper one drops, or stores beside the embedding.
        columns: token-pure modules to store, in the order in which a pass enters them; the first is the residual.
        dropped: modules whose output is unread once the columns are stored.
        routers: modules inside the columns that choose experts.
        mergeable: the column that may be added to the residual beforehand, if there is one.
        summed: columns that the model only adds to another, by name: that one's. Their sum takes the place of both.
        separable: the fold behind a sum of look-ups; None where the columns see the token alone.
        forms: by module, the form in which it returns rows, where that is not the rows themselves.
        padded_output: the first block's output with the tokens that ``padding_mask`` names as padding.
    """

    name: str
    columns: list[TokenPureModule]
    dropped: list[TokenPureModule]
    routers: list[str]
    mergeable: str | None
    summed: dict[str, str]
    separable: Separable | None
    forms: dict[str, Form]
    seen: list[ModuleDependency]
    block_output: torch.Tensor | None
    padded_output: torch.Tensor | None

    def holds(self, module: str) -> bool:
        """Return whether a module is stored or dropped."""
        return module in _names([*self.columns, *self.dropped])

    @property
    def mergeable_width(self) -> int:
        """Values of the module that may be merged into the residual; 0 where there is none."""
        return sum(module.width for module in self.columns if module.name == self.mergeable)


def discover(
    model: PreTrainedModel,
    side: Side,
    first_block: str,
    ids: torch.Tensor,
    reentered: Collection[str] = (),
) -> list[Discovery]:
    """Find the cuts of the first block of one side of a materialized skeleton: the deepest, and shallower ones.

    ``reentered`` names modules that a whole pass runs more than once, as where blocks share weights: they must stay.

    Raises:
        UnsupportedModel: nothing folds; the reasons say why.
    """
    passes = run_passes(model, side, first_block, ids)
    pure = pure_modules(model, passes, reentered)
    separable = None
    if not any(module.name.startswith(f"{first_block}.") for module in pure):
        separable = find_separable(model, side, first_block, ids, passes, pure, reentered)
        if separable is None:
            raise UnsupportedModel(reasons(model, first_block, passes, reentered))
    experiment = _Experiment(model, side, first_block, ids, passes, explain(model, first_block, passes))
    deepest = experiment.split_read_from_unread(DEEPEST, pure, separable)
    if separable:
        return [deepest]
    return [deepest, *_shallower(experiment, pure, deepest), *_beside(experiment, pure, deepest)]


def _shallower(experiment: "_Experiment", pure: list[TokenPureModule], deepest: Discovery) -> list[Discovery]:
    """Return alternative cuts: each stores a module that the deepest cut makes redundant, not what follows it."""
    found = [deepest]
    for module in deepest.dropped:
        live = experiment.behind(module, pure)
        name = module.name.removeprefix(f"{experiment.first_block}.")
        shallow = experiment.split_read_from_unread(name, [each for each in pure if each.name not in live], None)
        known = [{column.name for column in each.columns} for each in found]
        if len(shallow.columns) > 1 and {column.name for column in shallow.columns} not in known:
            found.append(shallow)
    return found[1:]


def _beside(experiment: "_Experiment", pure: list[TokenPureModule], deepest: Discovery) -> Iterator[Discovery]:
    """Yield the cuts that leave the embedding as it is: another look-up of the tokens becomes a sum with it."""
    for name, into in deepest.summed.items():
        taken = experiment.passes.original.calls[into][0].taken
        if taken is None or taken.is_floating_point() or taken.shape != experiment.ids.shape:
            continue
        gone = {*_names(deepest.dropped)}
        dropped = [each for each in deepest.dropped if experiment.behind(each, pure) - gone == {name}]
        columns = [each for each in deepest.columns if each.name in (name, into)]
        yield replace(deepest, name=into, columns=columns, dropped=dropped, mergeable=None, summed={name: into})


def _names(modules: list[TokenPureModule]) -> list[str]:
    return [module.name for module in modules]


@dataclass(frozen=True)
class _Experiment:
    model: PreTrainedModel
    side: Side
    first_block: str
    ids: torch.Tensor
    passes: Passes
    seen: list[ModuleDependency]

    def behind(self, module: TokenPureModule, pure: list[TokenPureModule]) -> set[str]:
        """Name the token-pure modules whose output depends on a module's."""
        poison: Overrides = {module.name: lambda output: torch.full_like(output, torch.nan)}
        calls = trace(self.model, self.side, self.first_block, self.ids, poison).calls
        outputs = {each.name: calls[each.name][0].tensor for each in pure if each.name in calls}
        return {name for name, output in outputs.items() if output is not None and output.isnan().any()} - {module.name}

    def _superseded(self, stored: list[TokenPureModule], unread: set[str]) -> set[str]:
        """Name the unread modules whose readers are stored; others may be unread only in so short a sequence."""
        kept, gone = {module.name for module in stored} - unread, set[str]()
        for module in reversed(stored):
            if module.name in unread and self.behind(module, stored) & kept:
                gone.add(module.name)
            else:
                kept.add(module.name)
        return gone

    def split_read_from_unread(self, name: str, pure: list[TokenPureModule], separable: Separable | None) -> Discovery:
        """Split the token-pure modules into those that the block still reads and those that become redundant."""
        stored = [*pure, *separable.normed, *separable.columns] if separable else pure
        unread, mergeable = find_unread_and_mergeable(self.model, self.side, self.first_block, self.ids, stored)
        if separable:
            unread = unread - {separable.token}  # the norms read it: here they answer from what was recorded
            live, silent = _split(separable.normed, unread)
            unread = {module.name for module in silent} | self._superseded([*pure, *separable.columns], unread)
            columns, gone = _split(separable.columns, unread)
            separable, mergeable = replace(separable, columns=columns, normed=live), None
        else:
            unread, gone = self._superseded(pure, unread), []
        kept, dropped = _split(pure, unread)
        calls = self.passes.original.calls
        return Discovery(
            name=name,
            columns=kept,
            dropped=[*dropped, *gone],
            routers=[name for name, each in calls.items() if any(call.returns_indices for call in each)],
            mergeable=mergeable,
            summed={} if separable else find_summed(self.model, self.side, self.first_block, self.ids, kept),
            separable=separable,
            forms={name: each[0].form for name, each in calls.items() if each[0].form != PLAIN},
            seen=self.seen,
            block_output=self.passes.original.block_output,
            padded_output=self.passes.padded.block_output,
        )


def _split(modules: list[TokenPureModule], unread: set[str]) -> tuple[list[TokenPureModule], list[TokenPureModule]]:
    read = [module for module in modules if module.name not in unread]
    return read, [module for module in modules if module.name in unread]
