"""Options of a fold: the fields of one dataclass are those of the commands, of the Python API and of the card."""

import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefold.common.errors import UsageError

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
TABLE_DTYPES = ("int8", "float8_e4m3fn", "bfloat16")
PLACEMENTS = ("device", "host", "disk")


def _option(
    default: Any, text: str, metavar: str | None = None, *, among: tuple[str, ...] = (), inspected: bool = False
) -> Any:
    """Return a field with the help of its option; ``inspected``: it changes what ``prefold inspect`` prints."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "among": among, "inspected": inspected})


@dataclass(frozen=True)
class FoldOptions:
    """Options of a fold; sizes are in bytes.

    Raises:
        UsageError: a value is none of the allowed ones.
    """

    merge_residual: bool = _option(
        False,
        "Store a parallel block's FFN as part of the residual slice (the paper's layout): a fifth less table,"
        " no longer equal to the last bit.",
        inspected=True,
    )
    dtype: str | None = _option(
        None, "Run and store in another type: float32, bfloat16 or float16.", among=DTYPES, inspected=True
    )
    device: str = _option("cpu", "Where the table is computed: cpu, cuda, mps.")
    chunk_tokens: int | None = _option(None, "Tokens to compute at once; chosen by itself if not given.")
    max_shard_size: int | None = _option(
        None, "Repack what is not folded, e.g. 5GB; as in the source if not given.", "SIZE"
    )
    force: bool = _option(False, "Replace OUT, once the new one is verified, and weights in the repository.")
    cut: str = _option(
        AUTO,
        "Which modules to store, as `inspect` lists them; auto takes what saves most reads.",
        "NAME",
        inspected=True,
    )
    max_table: int | None = _option(None, "With --cut auto, store no more than this, e.g. 2GB.", "SIZE", inspected=True)
    text_only: bool = _option(
        False, "Fold a model that takes images or sounds, too; it will then take token ids alone.", inspected=True
    )
    adapter: Path | None = _option(  # noqa: RUF009  # it returns a field
        None,
        "A LoRA of the source: merged into the table where modules fold, kept in OUT/adapter where they do not.",
        "PATH",
    )
    placement: str = _option(
        PLACEMENTS[0],
        "Where the table lies when the result runs: device, host (memory) or disk (mapped from its file)."
        " A program that loads it may choose another place.",
        "WHERE",
        among=PLACEMENTS,
    )
    table_dtype: str | None = _option(
        None,
        "Store columns smaller: int8, float8_e4m3fn or bfloat16. No longer equal; the error is measured and"
        " printed. As values of the model's own type if not given.",
        "TYPE",
        among=TABLE_DTYPES,
        inspected=True,
    )
    quantize_residual: bool = _option(False, "With --table-dtype, store the residual slice so, too.", inspected=True)
    link: bool = _option(
        False,
        "Link files of the source that hold nothing folded, in place of copying them: both folders then share them.",
    )
    trust_remote_code: bool = _option(
        False, "Run code that the source brings, and let it go along. Read it first.", inspected=True
    )

    def __post_init__(self) -> None:
        """Refuse values that no model could be folded with."""
        for each in fields(self):
            value, among = getattr(self, each.name), each.metadata["among"]
            if among and value is not None and value not in among:
                raise UsageError(f"{flag(each.name)}: {value!r} is none of {', '.join(among)}")
        if self.quantize_residual and self.table_dtype is None:
            raise UsageError("--quantize-residual: give --table-dtype, too, which says to what")

    def command(self, source: str, revision: str | None) -> str:
        """Return the command that makes the same fold again, for a shell; of an adapter the name of its folder."""
        words = ["prefold", "convert", source, "OUT", *(["--revision", revision] if revision else [])]
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default and each.name not in ("force", "link"):
                shown = value.resolve().name if isinstance(value, Path) else str(value)
                words += [flag(each.name)] if value is True else [flag(each.name), shown]
        return shlex.join(words)


def flag(name: str) -> str:
    """Return the option of a field."""
    return f"--{name.replace('_', '-')}"
