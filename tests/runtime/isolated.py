"""Load folded checkpoints where prefold is not installed. Run as ``python -I isolated.py FOLDER IDS CHECKPOINT...``.

Leaves in FOLDER what it saw: ``seen.json``, and the logits of the token ids in the file IDS.
"""

import json
import sys
from pathlib import Path
from typing import Any


class Uninstalled:
    """Hides prefold, however it is installed."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuse to find it; of all else, know nothing."""
        if name.partition(".")[0] == "prefold":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def untrusted(checkpoint: str) -> str:
    """Load without ``trust_remote_code``; returns the error."""
    from transformers import AutoModelForCausalLM

    try:
        AutoModelForCausalLM.from_pretrained(checkpoint)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def trusted(checkpoint: str, ids: Any) -> tuple[dict[str, Any], Any]:
    """Load the checkpoint's own module; returns what is to be known of the model, and its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        checkpoint, trust_remote_code=True, dtype="auto", output_loading_info=True
    )
    keys = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info[kind]]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
    return {"keys": keys, "class": type(model).__name__, "module": type(model).__module__}, logits


def main(folder: Path, ids: Path, checkpoints: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    seen = {checkpoint: {"untrusted": untrusted(checkpoint)} for checkpoint in checkpoints}
    tensors = {}
    for checkpoint in checkpoints:
        figures, tensors[checkpoint] = trusted(checkpoint, torch.load(ids))
        seen[checkpoint] |= figures
    torch.save(tensors, folder / "logits.pt")
    (folder / "seen.json").write_text(json.dumps({"prefold": "prefold" in sys.modules, "checkpoints": seen}))


if __name__ == "__main__":
    sys.meta_path.insert(0, Uninstalled())
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
