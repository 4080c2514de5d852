"""Weights that an embedding shares, and their remaining owners once the embedding is a table."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from prefold.convert.model.skeleton import embeddings_and_head


@dataclass(frozen=True)
class Ties:
    """Ties of the embeddings that become tables, by names of parameters.

    Attributes:
        shared: every name of the embeddings' own weights, the tables' names among them.
        remaining_owners: those still needed, one for each group that stays tied among itself.
        others: ties between other weights are left.
        cleared: rows of padding that loading sets to zero, by the embedding's weight.
    """

    shared: list[str]
    remaining_owners: list[str]
    others: bool
    cleared: dict[str, int]


def find_ties(
    model: PreTrainedModel,
    declared: dict[str, str],
    embeddings: list[str],
    called: set[str],
    cleared: dict[str, int],
) -> Ties:
    """Find the names tied to the embeddings' weights, and which of their modules are ``called`` in a pass.

    ``declared`` are the ties of the whole model, ``cleared`` is of ``materialize``; ``model`` may lack blocks.
    """
    tables = [f"{embedding}.weight" for embedding in embeddings]
    weights = {id(model.get_parameter(table)) for table in tables}
    shared = [name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in weights]
    ties = {one: other for one, other in declared.items() if not {one, other} & set(tables)}
    needed = [name for name in shared if name not in tables and name.rpartition(".")[0] in called]
    remaining_owners = list(dict.fromkeys(ties.get(name, name) for name in needed))
    return Ties(shared, remaining_owners, bool(ties), cleared)


def tied_modules(model: PreTrainedModel) -> set[str]:
    """Name the modules that share a weight, but an embedding's, with another that is no part of them.

    Their output may be stored, but their weights would be read all the same.
    """
    aside = {id(held) for each in embeddings_and_head(model) for held in each.parameters(recurse=False)}
    holders = dict[int, list[str]]()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in aside:
            holders.setdefault(id(weight), []).append(name)
    shared = [names for names in holders.values() if len(names) > 1]
    return {
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        for names in shared
        if name and 0 < sum(each.startswith(f"{name}.") for each in names) < len(names)
    }
