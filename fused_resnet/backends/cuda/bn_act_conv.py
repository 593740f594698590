"""Batch norm and activation, then a convolution that returns the statistics of its output.

Either fused, see :mod:`.fused_conv`, or with PyTorch's convolution between passes of ours, as :mod:`.conv_algorithm`
says.

The latter is, forward, ``u = act(norm(x))`` | convolution | statistics; backward, ``g``, the gradient of y with that of
its statistics | both gradient convolutions | ``act'``, the norm and its channel sums. ``u`` is written again in
backward, not kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..arguments import Activation, BatchNorm, Conv, accumulate_dtype
from .bn_add_act import bn_add_act, bn_add_act_backward
from .channel_statistics import channel_statistics, channel_statistics_backward
from .fused_conv import FusedConv

__all__ = ["bn_act_conv", "bn_act_conv_backward"]


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
    u = _prologue(x, bn, activation)
    y = F.conv2d(u, weight, bias, *conv).contiguous(memory_format=torch.channels_last)
    if not statistics:
        nothing = y.new_empty(0, dtype=accumulate_dtype(x.dtype))
        return y, nothing, nothing.clone()
    return y, *channel_statistics(y)


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
    g = g_y
    if g_mean is not None and g_var is not None:
        g = channel_statistics_backward(g_y, g_mean, g_var, y, y_mean)
    u = _prologue(x, bn, activation) if output_mask[1] else x
    p, g_weight, g_bias = reference.convolution_backward(g, u, weight, conv, output_mask)
    if p is None:
        return None, None, g_weight, g_bias
    p = p.contiguous(memory_format=torch.channels_last)
    if _is_identity(bn, activation):
        return p, None, g_weight, g_bias
    g_x, g_bn, _, _ = bn_add_act_backward(p, x, bn, None, None, activation)
    return g_x, g_bn, g_weight, g_bias


def _is_identity(bn: BatchNorm | None, activation: Activation) -> bool:
    return bn is None and activation.name == "identity"


def _prologue(x: Tensor, bn: BatchNorm | None, activation: Activation) -> Tensor:
    return x if _is_identity(bn, activation) else bn_add_act(x, bn, None, None, activation)
