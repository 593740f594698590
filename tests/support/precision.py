"""PyTorch's own setting of how convolutions of float32 may round on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["convolutions_in"]


@contextmanager
def convolutions_in(precision: str) -> Iterator[None]:
    """``ieee`` or ``tf32``, within this context."""
    setting = torch.backends.cudnn.conv
    before, setting.fp32_precision = setting.fp32_precision, precision
    try:
        yield
    finally:
        setting.fp32_precision = before
