"""Dataclasses as the schema of JSON: ``dataclasses.asdict`` writes what ``from_json`` reads."""

from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def from_json(kind: Any, value: Any) -> Any:
    """Return a value of a type, as a dataclass, ``list[...]``, ``... | None``, ``str`` or ``float``, from JSON.

    Raises:
        TypeError: the value is of another form; a dataclass has all of its fields and no other key.
    """
    if isinstance(kind, UnionType):
        parts = [part for part in get_args(kind) if part is not NoneType]
        return None if value is None else from_json(parts[0], value)
    if is_dataclass(kind):
        return _from_object(kind, value)
    if get_origin(kind) is list:
        return [from_json(get_args(kind)[0], each) for each in _of(list, value)]
    return float(_of((int, float), value)) if kind is float else _of(kind, value)


def _from_object(kind: Any, value: Any) -> Any:
    hints, names = get_type_hints(kind), {each.name for each in fields(kind)}
    if _of(dict, value).keys() != names:
        raise TypeError(f"{kind.__name__} has {', '.join(sorted(names))}, not {', '.join(sorted(map(str, value)))}")
    return kind(**{name: from_json(hints[name], value[name]) for name in names})


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.80} is no {getattr(kind, '__name__', 'number')}")
    return value
