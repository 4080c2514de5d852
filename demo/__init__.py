"""A small trained GPT-NeoX checkpoint with text it never saw, for trying prefold without a download."""

from pathlib import Path

__all__ = ["CHECKPOINT", "HELD_OUT"]

CHECKPOINT: Path = Path(__file__).resolve().parent / "checkpoint"  # some installs link files one by one
HELD_OUT: Path = Path(__file__).parent / "held_out.txt"
