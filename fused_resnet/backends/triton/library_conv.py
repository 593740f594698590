"""Convolutions of the vendor's library between kernels of ours: u, g and the statistics as passes of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..arguments import Activation, BatchNorm, Conv
from .bn_add_act import bn_add_act, bn_add_act_backward
from .channel_statistics import channel_statistics
from .output_gradient import Statistics, output_gradient

__all__ = ["bn_act_conv_backward", "bn_act_conv_forward", "conv_bn_add_act"]


def bn_act_conv_forward(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    conv: Conv,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
    y = F.conv2d(_bn_act(x, bn, activation), weight, bias, *conv).contiguous(memory_format=torch.channels_last)
    if not statistics:
        nothing = y.new_empty(0, dtype=torch.float32)
        return y, nothing, nothing.clone()
    return y, *channel_statistics(y)


def bn_act_conv_backward(
    g_y: Tensor,  # [N, K, OH, OW]
    statistics: Statistics | None,
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    conv: Conv,
    output_mask: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_weight; ``output_mask`` asks for (x and bn, weight)."""
    g = output_gradient(g_y, statistics)
    u = _bn_act(x, bn, activation) if output_mask[1] else x
    p, g_weight, _ = reference.convolution_backward(g, u, weight, conv, (*output_mask, False))
    if p is None:
        return None, None, g_weight
    p = p.contiguous(memory_format=torch.channels_last)
    return *bn_add_act_backward(p, x, bn, None, None, activation)[:2], g_weight


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


def _bn_act(x: Tensor, bn: BatchNorm | None, activation: Activation) -> Tensor:
    nothing_to_do = bn is None and activation.name == "identity"
    return x if nothing_to_do else bn_add_act(x, bn, None, None, activation)
