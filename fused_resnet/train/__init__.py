"""Training runs that show a fused model learning as its stock twin does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import TrainSettings

if TYPE_CHECKING:
    from .data import Data
    from .loop import Epoch, TrainResult, train

__all__ = ["Data", "Epoch", "TrainResult", "TrainSettings", "train"]


def __getattr__(name: str) -> Any:
    """The names that need torch, when they are first asked for: the command line's help needs the settings only."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import data, loop

    return getattr(data if name in data.__all__ else loop, name)
