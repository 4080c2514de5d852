"""Proof that a folded checkpoint says what its source says, and reads less for it."""

from prefold.verify.checks import Outcome, Verification
from prefold.verify.prompts import read_prompts
from prefold.verify.verification import verify_against, verify_checkpoint

__all__ = ["Outcome", "Verification", "read_prompts", "verify_against", "verify_checkpoint"]
