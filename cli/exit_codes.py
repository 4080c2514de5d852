"""Which error is told how, and what the shell is told."""

FAILED, USAGE, UNSUPPORTED, EXISTS, UNVERIFIED = 1, 2, 3, 4, 5


def explain(error: Exception) -> tuple[list[str], int]:
    """Return the lines to print for an error and the exit code."""
    from prefold.plan.errors import Infeasible, PlanError
    from prefold.tree.errors import TreeError, Uncountable

    if isinstance(error, (PlanError, TreeError)):
        return str(error).splitlines(), UNSUPPORTED if isinstance(error, (Infeasible, Uncountable)) else USAGE
    # Known errors are imported here, since importing them imports torch, and help must not wait for that.
    from prefold.convert import OutputExists, PrefoldError, UnsupportedModel, UsageError
    from prefold.verify import VerificationFailed

    codes = {UsageError: USAGE, UnsupportedModel: UNSUPPORTED, OutputExists: EXISTS, VerificationFailed: UNVERIFIED}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)
    if isinstance(error, PrefoldError):
        return str(error).splitlines(), code
    said = " ".join(str(error).split())
    return [f"{type(error).__name__}: {said} (PREFOLD_DEBUG=1 shows where)"], code
