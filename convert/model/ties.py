"""Weights that are an embedding's and something else's, too: who still needs them once the embedding is a table."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Ties:
    """What was tied to the embeddings that become tables; all by names of parameters.

    Attributes:
        shared: every name of the embeddings' own weights, the tables' names among them.
        heirs: those that still need them, one for each group that stays tied among itself.
        others: ties are left that no embedding has to do with.
    """

    shared: list[str]
    remaining_owners: list[str]
    others: bool


def find_ties(model: PreTrainedModel, declared: dict[str, str], embeddings: list[str], called: set[str]) -> Ties:
    """Find what is tied to the embeddings' weights, and who of them is ``called`` in a pass.

    ``declared`` is what the whole model ties to what; ``model`` may lack blocks.
    """
    tables = [f"{embedding}.weight" for embedding in embeddings]
    weights = {id(model.get_parameter(table)) for table in tables}
    shared = [name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in weights]
    ties = {one: other for one, other in declared.items() if not {one, other} & set(tables)}
    needed = [name for name in shared if name not in tables and name.rpartition(".")[0] in called]
    remaining_owners = list(dict.fromkeys(ties.get(name, name) for name in needed))
    return Ties(shared, remaining_owners, others=bool(ties))


def tied_modules(model: PreTrainedModel) -> set[str]:
    """Name the modules that share a weight, but an embedding's, with another that is no part of them.

    What such a module returns may be stored, but its weights would be read all the same.
    """
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    holders = dict[int, list[str]]()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in looked_up:
            holders.setdefault(id(weight), []).append(name)
    shared = [names for names in holders.values() if len(names) > 1]
    return {
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        for names in shared
        if name and 0 < sum(each.startswith(f"{name}.") for each in names) < len(names)
    }
