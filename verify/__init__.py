"""Proof that a folded checkpoint says what its source says, and reads less for it."""

from prefold.verify.checks import Outcome, Verification, VerificationFailed, write_report
from prefold.verify.prompts import read_prompts
from prefold.verify.verification import require_verified, verify_against, verify_checkpoint

__all__ = [
    "Outcome",
    "Verification",
    "VerificationFailed",
    "read_prompts",
    "require_verified",
    "verify_against",
    "verify_checkpoint",
    "write_report",
]
