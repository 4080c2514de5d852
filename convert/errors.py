"""What can go wrong, one class for each way that a caller may want to treat differently."""


class PrefoldError(Exception):
    """Base of every error that prefold raises on purpose; its text is one line for a person."""


class UsageError(PrefoldError):
    """What was asked for makes no sense: no such path, not a checkpoint."""


class BrokenCheckpoint(PrefoldError):
    """The checkpoint says one thing and its files another."""


class StorageError(PrefoldError):
    """The disk is full, or the output cannot be written."""


class HubError(PrefoldError):
    """The hub cannot be reached, or has no such repository or revision."""


class UnsupportedModel(PrefoldError):
    """The model cannot be folded; carries every reason that was found.

    Attributes:
        reasons: one sentence each, never empty.
    """

    def __init__(self, reasons: list[str]) -> None:
        """Keep ``reasons``."""
        super().__init__(reasons)  # as they came: an error that crosses processes is built again from them
        self.reasons = reasons

    def __str__(self) -> str:
        """Show one reason on each line."""
        return "\n".join(self.reasons)


class OutputExists(PrefoldError):
    """The output is already there, or another conversion is writing it."""
