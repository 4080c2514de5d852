"""Errors of a plan."""

from prefold.common.errors import UNSUPPORTED, PrefoldError


class Infeasible(PrefoldError):
    """A plan does not fit: chips, batch or memory."""

    exit_code = UNSUPPORTED
