"""What a training run is asked to do, checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["SCHEDULES", "WARM_UP_EPOCHS", "TrainSettings", "learning_rate_factor"]


def _step(progress: float) -> float:
    """A tenth after half of the training, a hundredth after three quarters: He et al. 2015, section 4.2."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


def _cosine(progress: float) -> float:
    """Half a cosine from 1 to 0: Loshchilov and Hutter 2016, "SGDR", equation 5, without restarts."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


WARM_UP_EPOCHS = 3
WARM_UP_START = 1e-3
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "step": _step}


@dataclass(frozen=True)
class TrainSettings:
    """Data, model and SGD. Raises ValueError for what cannot be run, with what was expected and what came."""

    data: str = "digits"
    model: str = "resnet20"
    epochs: int = 12
    batch: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    seed: int = 0
    threads: int | None = None  # None: torch's own choice
    stock: bool = False  # train the unfused twin

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: expected a positive number, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number from 0 to below 1, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: expected a positive momentum, got 0.0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected a number of at least 0, got {self.weight_decay}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        from ..models.registry import find_model
        from .data import SOURCES

        if self.data not in SOURCES:
            raise ValueError(f"unknown data {self.data!r}; known: {', '.join(SOURCES)}")
        find_model(self.model)


def learning_rate_factor(schedule: str, step: int, steps: int, warm_up_steps: int) -> float:
    """What the learning rate is multiplied with at ``step`` of ``steps``: the schedule, but while warming up at most an
    exponential from ``WARM_UP_START`` to 1.

    So gentle a start is for the sake of comparison, as a random network amplifies rounding: under a linear warm-up to
    0.1 over one epoch, the losses of stock PyTorch and of the same with weights off by 1e-7 are 1e-2 apart at step 6.
    """
    warm_up = WARM_UP_START ** max(0.0, 1 - step / warm_up_steps)
    return min(warm_up, SCHEDULES[schedule](step / steps))
