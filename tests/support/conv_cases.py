"""Convolutions with tails in all directions, for the fused kernels of CUDA."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from fused_resnet.backends.choices import force

from .cases import image

__all__ = ["CASES", "conv_case", "tile_of"]

# (N, C, H, W), K, kernel, stride, padding, dilation, groups
CASES = {
    "1x1": ((2, 64, 7, 5), 80, 1, 1, 0, 1, 1),
    "1x1-tails": ((2, 65, 5, 7), 17, 1, 1, 0, 1, 1),
    "1x1-stride2": ((2, 16, 7, 6), 72, 1, 2, 0, 1, 1),
    "1x1-padded": ((1, 8, 4, 3), 16, 1, 1, 1, 1, 1),
    "3x3": ((1, 40, 6, 9), 24, 3, 1, 1, 1, 1),
    "3x3-stride2": ((2, 7, 7, 6), 65, 3, 2, 1, 1, 1),
    "stem": ((1, 3, 11, 9), 16, 7, 2, 3, 1, 1),
    "dilated": ((1, 17, 7, 7), 3, 3, 1, 2, 2, 1),
    "grouped": ((1, 32, 4, 4), 16, 3, 1, 1, 1, 2),
    "grouped-tails": ((1, 9, 5, 4), 6, 3, 2, 1, 1, 3),
    "asymmetric": ((1, 5, 5, 9), 6, (3, 1), (2, 1), (1, 0), (1, 1), 1),
    "one-pixel": ((3, 24, 1, 1), 8, 1, 1, 0, 1, 1),
    "one-channel": ((2, 1, 4, 4), 1, 3, 1, 1, 1, 1),
    "window-in-padding": ((1, 8, 2, 2), 8, 3, 2, 3, 1, 1),
}


def tile_of(size: str) -> AbstractContextManager[None]:
    """Within this context blocks compute tiles of this size."""
    return force({f"{op}.tile": size for op in ("bn_act_conv", "bn_act_conv_backward", "conv_bn_add_act")})


def conv_case(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """x [N, C, H, W], weight [K, C / groups, R, S], and stride, padding, dilation and groups."""
    shape, k, kernel, *geometry, groups = CASES[name]
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = torch.randn(k, shape[1] // groups, r, s) * (shape[1] // groups * r * s) ** -0.5
    return image(*shape, dtype=dtype), weight.to(dtype), (*geometry, groups)
