"""Shapes of a real ResNet-50 at 224 pixels, batch 8, and tensors of them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["STAGES", "image"]

# (N, C, H, W) of raw outputs
STAGES = {
    "stem": (8, 64, 112, 112),
    "layer1": (8, 256, 56, 56),
    "layer2": (8, 512, 28, 28),
    "layer3": (8, 1024, 14, 14),
    "layer4": (8, 2048, 7, 7),
}


def image(*shape: int) -> Tensor:
    """A random channels_last tensor."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)
