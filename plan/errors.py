"""What can be wrong with what a plan is asked for."""

from difflib import get_close_matches


class PlanError(Exception):
    """Something was asked for that cannot be planned; one line for each reason."""


class UnknownName(PlanError):
    """A name that no catalogue has."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        """Name those that are nearest."""
        near = get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
        super().__init__(f"{name}: no such {kind}; the nearest: {', '.join(near[:3])}")


class Infeasible(PlanError):
    """What was asked for does not fit: chips, batch or memory."""
