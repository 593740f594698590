"""Which tile a launch uses: what was tuned for its device, shape and type, else the first of the short list."""

from __future__ import annotations

from torch import Tensor

from ..arguments import Conv
from .configs import POINTWISE, Config, product_configs

__all__ = ["pointwise", "product"]


def pointwise(op: str, x: Tensor) -> tuple[int, int]:
    """Elements and warps of a pointwise kernel's tile."""
    return POINTWISE[0]


def product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> Config:
    """The tile of a convolution's matrix product."""
    return product_configs(x.element_size())[0]
