"""Batch norm and activation, then a convolution that returns the statistics of its output.

Either fused, see :mod:`.fused_conv`, or PyTorch's convolution between passes of ours, see :mod:`..library_conv`; which,
says :mod:`.conv_algorithm`.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from ..library_conv import LibraryConv, bias_gradient
from .bn_add_act import bn_add_act, bn_add_act_backward
from .channel_statistics import channel_statistics, channel_statistics_backward
from .fused_conv import FusedConv

__all__ = ["LIBRARY_CONV", "bn_act_conv", "bn_act_conv_backward"]

LIBRARY_CONV = LibraryConv(bn_add_act, bn_add_act_backward, channel_statistics, channel_statistics_backward)


def bn_act_conv(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    conv: Conv,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
    fused = FusedConv.of("bn_act_conv", x, weight, conv)
    if fused is not None:
        return fused.forward(x, bn, activation, bias, statistics)
    return LIBRARY_CONV.forward(x, bn, activation, weight, bias, conv, statistics)


def bn_act_conv_backward(
    g_y: Tensor,  # [N, K, OH, OW]
    g_mean: Tensor | None,  # [K]
    g_var: Tensor | None,  # [K]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    y: Tensor,  # [N, K, OH, OW]
    y_mean: Tensor,  # [K]
    conv: Conv,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_weight, g_bias; ``output_mask`` asks for (x and bn, weight, bias)."""
    fused = FusedConv.of("bn_act_conv_backward", x, weight, conv)
    if fused is not None:
        return fused.backward(g_y, g_mean, g_var, x, bn, activation, weight, y, y_mean, output_mask)
    g_x, g_bn, g_weight = LIBRARY_CONV.backward(
        g_y, g_mean, g_var, x, bn, activation, weight, y, y_mean, conv, output_mask[:2]
    )
    return g_x, g_bn, g_weight, bias_gradient(g_y, g_mean, weight.dtype) if output_mask[2] else None
