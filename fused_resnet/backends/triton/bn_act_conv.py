"""Batch norm, activation and convolution with statistics: forward, and the two gradient products of backward."""

from __future__ import annotations

from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from ..library_conv import LibraryConv, bias_gradient
from .bn_act_conv_forward import bn_act_conv_forward
from .bn_add_act import bn_add_act, bn_add_act_backward
from .channel_statistics import channel_statistics
from .conv_choice import implicit_product
from .conv_dgrad import conv_dgrad
from .conv_wgrad import conv_wgrad
from .launch import reference_if_empty
from .output_gradient import Statistics, output_gradient

__all__ = ["LIBRARY_CONV", "bn_act_conv", "bn_act_conv_backward"]

LIBRARY_CONV = LibraryConv(bn_add_act, bn_add_act_backward, channel_statistics, output_gradient)


@reference_if_empty
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
    ours = implicit_product("bn_act_conv", x, weight, conv)
    forward = bn_act_conv_forward if ours else LIBRARY_CONV.forward
    return forward(x, bn, activation, weight, bias, conv, statistics)


@reference_if_empty
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
    g_x = g_bn = g_weight = None
    if implicit_product("bn_act_conv_backward", x, weight, conv):
        arguments = (g_y, Statistics.of(y, y_mean, g_mean, g_var), x, bn, activation, weight, conv)
        if output_mask[0]:
            g_x, g_bn = conv_dgrad(*arguments)
        if output_mask[1]:
            g_weight = conv_wgrad(*arguments)
    else:
        g_x, g_bn, g_weight = LIBRARY_CONV.backward(
            g_y, g_mean, g_var, x, bn, activation, weight, y, y_mean, conv, output_mask[:2]
        )
    return g_x, g_bn, g_weight, bias_gradient(g_y, g_mean, weight.dtype) if output_mask[2] else None
