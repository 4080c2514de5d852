"""Quantities with their units, as ``1200 GB/s``, ``32 GiB``, ``275 TFLOP/s`` and ``30 ms``."""

import re
from collections.abc import Sequence
from typing import Any, Literal

from prefold.common.errors import UsageError

Kind = Literal["bytes", "bytes per second", "operations per second", "seconds"]

_BYTES: dict[str, float] = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_UNITS: dict[Kind, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes per second": {f"{unit}/s": scale for unit, scale in _BYTES.items()},
    "operations per second": {
        f"{prefix}{what}/s": scale
        for prefix, scale in (("G", 1e9), ("T", 1e12), ("P", 1e15))
        for what in ("FLOP", "OP")
    },
    "seconds": {"s": 1, "ms": 1e-3, "us": 1e-6},
}
_DIGITS, _MANY = 4, 10_000
_LARGEST = 1e30  # products of a few such numbers are numbers, still
_QUANTITY = re.compile(r"(\d*\.?\d+) ?([A-Za-z]*(?:/s)?)")


def parse_quantity(text: Any, kind: Kind) -> float:
    """Return a quantity in the kind's own unit; ``UsageError`` where the text is not a number with one of its units."""
    found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2] not in _UNITS[kind]:
        raise UsageError(f"{text!r} is not a number of {kind} with its unit, one of {', '.join(_UNITS[kind])}")
    return _finite(found[1]) * _UNITS[kind][found[2]]


def _finite(text: str) -> float:
    number = float(text)
    if number > _LARGEST:
        raise UsageError(f"{text[:_DIGITS]}... of {len(text)} digits is too large a number")
    return number


def parse_bytes(text: str) -> int:
    """Return bytes as a user types them, the unit in any case or left out; ``UsageError`` where they are no size."""
    found = _QUANTITY.fullmatch(text.strip())
    scales = {unit.lower(): scale for unit, scale in {"": 1, **_BYTES}.items()}
    if found is None or found[2].lower() not in scales:
        raise UsageError(f"{text!r} is no size such as 5GB or 200MiB")
    return int(_finite(found[1]) * scales[found[2].lower()])


def spell_seconds(seconds: float) -> str:
    """Return a time as it is read most easily, as ``88.3 ms``."""
    unit, scale = next((each for each in _UNITS["seconds"].items() if abs(seconds) >= each[1]), ("us", 1e-6))
    number = f"{seconds / scale:#.{_DIGITS}g}".removesuffix(".")
    return f"{number} {unit}" if abs(seconds) < _MANY else f"{seconds:,.0f} s"


def spell_bytes(amount: float, units: Sequence[str] = ("GiB", "MiB")) -> str:
    """Return bytes in the first of some units of which they are a hundredth or more, or else in the last."""
    unit = next((each for each in units if abs(amount) >= _BYTES[each] / 100), units[-1])
    return f"{amount:,.0f} B" if unit == "B" else f"{amount / _BYTES[unit]:,.2f} {unit}"


def spell_weights(count: float) -> str:
    """Return a number of weights as the names of models do, as ``558.2B`` or ``44.63M``."""
    unit, scale = next((each for each in (("B", 1e9), ("M", 1e6)) if count >= each[1]), ("k", 1e3))
    return f"{count / scale:,.{_DIGITS}g}{unit}"
