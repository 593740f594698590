"""The Triton backend: one module an op, its kernels and the functions that launch them.

Kernels are compiled at their first use, for NVIDIA and AMD alike; nothing is compiled at install time. Under
``TRITON_INTERPRET=1``, set before the first import, they run on CPU tensors, interpreted: slow, and for tests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Conv
from .bn_act_conv import bn_act_conv, bn_act_conv_backward
from .bn_act_max_pool import bn_act_max_pool, bn_act_max_pool_backward
from .bn_add_act import bn_add_act, bn_add_act_backward
from .conv_bn_add_act import conv_bn_add_act

__all__ = [
    "bn_act_conv",
    "bn_act_conv_backward",
    "bn_act_max_pool",
    "bn_act_max_pool_backward",
    "bn_add_act",
    "bn_add_act_backward",
    "conv_bn_add_act",
    "unsupported",
]


def unsupported(op: str, x: Tensor, weight: Tensor | None = None, conv: Conv | None = None) -> str | None:
    """Why this backend lacks a case, or None."""
    if x.dtype == torch.float64:
        return "float64"
    if x.numel() // max(x.shape[1], 1) >= 2**30:  # kernels count pixels in 32 bits, and elements in 64
        return "2^30 pixels or more"
    return None
