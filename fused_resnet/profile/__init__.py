"""Where a training step spends time and memory, stock beside fused: ``fused_resnet.profile.run(model, inputs)``."""

from .measure import run
from .result import ProfileResult

__all__ = ["ProfileResult", "run"]
