"""The ``prefold`` section of a folded ``config.json``, read back."""

from typing import Any

from prefold.convert.cut import Column, Cut
from prefold.convert.errors import BrokenCheckpoint


def _columns(entries: list[dict[str, Any]]) -> list[Column]:
    return [Column(e["module"], e.get("start", 0), e["shape"], e.get("masked", False)) for e in entries]


def read_cut(config: dict[str, Any]) -> Cut:
    """Return the cut that a folded checkpoint was written with.

    Raises:
        BrokenCheckpoint: the config has no such section, or not a whole one.
    """
    section = config.get("prefold")
    if not isinstance(section, dict):
        raise BrokenCheckpoint("config.json has no prefold section: not a folded checkpoint")
    try:
        return _cut(section)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenCheckpoint(f"config.json: its prefold section is malformed: {error!r}") from error


def _cut(section: dict[str, Any]) -> Cut:
    table = section["table"]
    columns, dropped, merged = (_columns(section[part]) for part in ("columns", "dropped", "merged"))
    if table["start"] is None:
        residual, *columns = columns
        dropped = [Column(table["module"], 0, [table["width"]]), *dropped]
    else:
        residual = Column(table["module"], table["start"], [table["width"]])
    return Cut(
        embedding=table["module"],
        embedding_width=table["width"],
        rows=table["rows"],
        residual=residual,
        columns=columns,
        dropped=dropped,
        merged=merged[0] if merged else None,
    )
