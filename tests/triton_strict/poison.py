"""Memory that nobody wrote, filled with what no result survives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

__all__ = ["poison_empty"]


def poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """``empty``, ``empty_like`` and ``new_empty`` return NaN, or 255, for the rest of the test."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            t = make(*args, **kwargs)
            if t.device.type != "cpu":
                return t
            return t.fill_(float("nan")) if t.is_floating_point() else t.fill_(255)

        return wrapper

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
