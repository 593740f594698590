"""Convolution, batch norm, residual add and activation for inference: PyTorch's convolution and one pass of ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .bn_add_act import bn_add_act

__all__ = ["conv_bn_add_act"]


def conv_bn_add_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, K, OH, OW]
    activation: Activation,
    conv: Conv,
) -> Tensor:
    """out [N, K, OH, OW]."""
    y = F.conv2d(x, weight, bias, *conv).contiguous(memory_format=torch.channels_last)
    return bn_add_act(y, bn, residual, None, activation)
