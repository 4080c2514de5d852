"""Ways in which a client is asked to load a fold."""

from typing import Any

import pytest
from transformers import PreTrainedModel

import prefold.runtime  # noqa: F401
from tests.runtime.clients.ways import RUNTIME, STOCK, TRUST, Way


def _forget_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give transformers its own entrances back, as in a program that did not import ``prefold.runtime``."""
    for name in ("from_pretrained", "_from_config"):
        own: Any = PreTrainedModel.__dict__[name].__func__.__wrapped__
        monkeypatch.setattr(PreTrainedModel, name, classmethod(own))


@pytest.fixture(params=[TRUST, RUNTIME], ids=str)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Return a way that loads: with trust and nothing else, or with the runtime imported and no trust."""
    if request.param is TRUST:
        _forget_folds(monkeypatch)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Way:
    """Return the way of a program that does not know of folds."""
    _forget_folds(monkeypatch)
    return STOCK
