"""Sources of trees: a file, or a generator that is written as ``few-shot:prompt=4000,branches=20,steps=400``."""

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path

from prefold.common.errors import UnknownName, UsageError
from prefold.tree.count.accepted import read_accepted, speculative
from prefold.tree.count.files import Forest, read_trees
from prefold.tree.count.generators import beam, few_shot, n_best
from prefold.tree.count.segments import Tree


def _replayed(file: Path, size: int, prompt: int, cap: int, dataset: str = "APPS", index: int = 0) -> Tree:
    return speculative(read_accepted(file, dataset, index), size, prompt, cap)


_GENERATORS: dict[str, Callable[..., Tree]] = {
    "few-shot": few_shot,
    "n-best": n_best,
    "beam": beam,
    "speculative": _replayed,
}


def _value(name: str, key: str, text: str) -> int | str | Path:
    if key in ("file", "dataset"):
        return Path(text) if key == "file" else text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{name}: {key}={text} is not a whole number") from error


def open_trees(source: str, *, limit: int | None = None) -> Forest:
    """Return the trees of a file, the first ``limit`` complete ones, or the tree of a generator.

    ``source`` is a path, or ``NAME:key=value,...`` with a generator's name.

    Raises:
        UsageError: there is neither, or no tree in it.
    """
    name, colon, settings = source.partition(":")
    if name in _GENERATORS:
        tree = _GENERATORS[name](**_arguments(name, settings))
        return Forest(tree.name, (tree,))
    if not Path(source).exists() and (colon or not Path(source).suffix):
        raise UnknownName("file or generator", name, list(_GENERATORS))
    return read_trees(Path(source), limit=limit)


def _arguments(name: str, settings: str) -> dict[str, int | str | Path]:
    parameters = signature(_GENERATORS[name]).parameters
    given: dict[str, int | str | Path] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in parameters:
            raise UsageError(f"{name}: no setting {key!r}; there are {', '.join(parameters)}")
        if key in given:
            raise UsageError(f"{name}: {key} is given twice")
        given[key] = _value(name, key, value)
    missing = [key for key, each in parameters.items() if each.default is Parameter.empty and key not in given]
    if missing:
        raise UsageError(f"{name}: without {', '.join(missing)}; as {name}:{','.join(f'{key}=...' for key in missing)}")
    return given
