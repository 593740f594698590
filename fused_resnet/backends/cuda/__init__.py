"""The CUDA backend: the kernels of csrc/cuda, one module an op.

A convolution is fused, or PyTorch's between passes of ours: there the prologue is materialised, the statistics are a
pass of their own, and so are both ends of the gradient convolutions. Which, says :mod:`.conv_algorithm`.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Conv
from .bn_act_conv import bn_act_conv, bn_act_conv_backward
from .bn_act_max_pool import bn_act_max_pool, bn_act_max_pool_backward
from .bn_add_act import bn_add_act, bn_add_act_backward
from .channel_statistics import channel_statistics, channel_statistics_backward
from .conv_bn_add_act import conv_bn_add_act

__all__ = [
    "bn_act_conv",
    "bn_act_conv_backward",
    "bn_act_max_pool",
    "bn_act_max_pool_backward",
    "bn_add_act",
    "bn_add_act_backward",
    "channel_statistics",
    "channel_statistics_backward",
    "conv_bn_add_act",
    "unsupported",
]


def unsupported(op: str, x: Tensor, weight: Tensor | None = None, conv: Conv | None = None) -> str | None:
    """Why this backend lacks a case, or None. It has all of them."""
    return None
