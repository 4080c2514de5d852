"""Load one checkpoint and report this process's memory: ``python placement_memory.py FOLDER PLACEMENT``."""

import sys
from pathlib import Path

import torch
from case import tell
from memory_status import status
from timing import load, random_tokens, read_all

_PARTS = {"rss": "VmRSS", "anon": "RssAnon", "file": "RssFile"}
_PROMPT, _STEPS = 16, 16


def _now() -> dict[str, int]:
    return {name: status(line) for name, line in _PARTS.items()}


@torch.no_grad()
def main(folder: str, placement: str) -> None:
    """Report the memory before and after loading, after a short text, and when every parameter was read.

    A source has no placement.
    """
    before = _now()
    model = load(Path(folder), **({"prefold_placement": placement} if placement else {}))
    loaded, peak = _now(), status("VmHWM")
    model.generate(  # type: ignore[operator]
        random_tokens(model.config.vocab_size, 1, _PROMPT), min_new_tokens=_STEPS, max_new_tokens=_STEPS,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    used = _now()
    read_all(model)
    tell({"before": before, "loaded": loaded, "peak": peak, "used": used, "all": _now()})


if __name__ == "__main__":
    main(*sys.argv[1:])
