"""The ``prefold`` section of a folded ``config.json``, read back."""

from typing import Any

from prefold.convert.errors import BrokenCheckpoint
from prefold.convert.experiment.look_ups import LookUp
from prefold.convert.experiment.norm import Norm
from prefold.convert.fold.encoding import Encoding
from prefold.convert.fold.layout import Column, Cut, Place, Sum
from prefold.convert.model.inputs import Side


def _columns(entries: list[dict[str, Any]]) -> list[Column]:
    return [Column(e["module"], e.get("start", 0), e["shape"], e.get("masked", False)) for e in entries]


def read_cuts(config: dict[str, Any]) -> list[Cut]:
    """Return the cuts that a folded checkpoint was written with, one for each side.

    Raises:
        BrokenCheckpoint: the config has no such section, or not a whole one.
    """
    section = config.get("prefold")
    if not isinstance(section, dict):
        raise BrokenCheckpoint("config.json has no prefold section: not a folded checkpoint")
    try:
        return [_cut(fold) for fold in section["folds"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenCheckpoint(f"config.json: its prefold section is malformed: {error!r}") from error


def _cut(fold: dict[str, Any]) -> Cut:
    table = fold["table"]
    columns, dropped, merged = (_columns(fold[part]) for part in ("columns", "dropped", "merged"))
    if table["start"] is None:
        residual, *columns = columns
        dropped = [Column(table["module"], 0, [table["width"]]), *dropped]
    else:
        residual = Column(table["module"], table["start"], [table["width"]])
    return Cut(
        name=fold["cut"],
        place=Place(
            side=Side(fold["side"], fold["sees_source"]),
            embedding=table["module"],
            rows=table["rows"],
            begins=fold["begins"],
            unused=fold["unused"],
        ),
        embedding_width=table["width"],
        residual=residual,
        columns=columns,
        dropped=dropped,
        merged=merged[0] if merged else None,
        sum=_sum(fold["sum"]) if fold["sum"] else None,
        encoding=Encoding.read(table["stored"]) if table["stored"] else None,
    )


def _sum(entry: dict[str, Any]) -> Sum:
    norms = [Norm(norm["module"], norm["centred"], norm["eps"]) for norm in entry["norms"]]
    return Sum(
        token=entry["token"],
        factor=entry["factor"],
        look_ups=[LookUp(**look_up) for look_up in entry["look_ups"]],
        norms=norms,
        live=[norm["module"] for norm in entry["norms"] if norm["live"]],
        columns=_columns(entry["columns"]),
    )
