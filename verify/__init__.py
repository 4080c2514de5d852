"""Proof that a folded checkpoint returns what its source returns, and reads less for it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefold.verify.checks import Outcome, Verification, VerificationFailed, write_report
    from prefold.verify.forking import shared_server
    from prefold.verify.prompts import read_prompts, token_prompts
    from prefold.verify.verification import require_verified, verify_against, verify_checkpoint

__all__ = [
    "Outcome",
    "Verification",
    "VerificationFailed",
    "read_prompts",
    "require_verified",
    "shared_server",
    "token_prompts",
    "verify_against",
    "verify_checkpoint",
    "write_report",
]

_MODULES = {"shared_server": "forking", "read_prompts": "prompts", "token_prompts": "prompts"}
_MODULES |= dict.fromkeys(("Outcome", "Verification", "VerificationFailed", "write_report"), "checks")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the server can be started before torch is imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'verification')}"), name)
