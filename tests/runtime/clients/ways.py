"""How a client loads a fold, and what is compared of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Way:
    """What a client's loading function is given, and where the class then comes from."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    module: str = "transformers.models."

    def __str__(self) -> str:
        return self.name

    def require(self, model: PreTrainedModel) -> None:
        """Assert that a model was loaded in this way."""
        assert type(model).__module__.startswith(self.module), type(model)


STOCK = Way("stock")
TRUST = Way("trust", {"trust_remote_code": True}, "transformers_modules.")
RUNTIME = Way("runtime", {}, "prefold.runtime.")


@contextmanager
def errors_logged() -> Iterator[list[str]]:
    """Collect what transformers logs as an error."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)
