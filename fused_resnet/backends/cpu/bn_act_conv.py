"""Batch norm and activation, then a convolution that returns the statistics of its output: on the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpu
from .. import reference
from ..arguments import Activation, BatchNorm, Conv, accumulate_dtype
from . import native
from .engine import Engine

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
    engine = Engine.of(x, weight, conv)
    if engine is None:  # nothing to compute
        return reference.bn_act_conv(x, bn, activation, weight, bias, conv, statistics)
    y = engine.empty_output(x)
    mean = torch.empty(y.shape[1] if statistics else 0, dtype=accumulate_dtype(y.dtype))
    var = torch.empty_like(mean)
    (vectors, norm), bias = native.norm(bn, x.dtype), native.vector(bias)
    _cpu.conv_forward(
        engine.arguments,
        native.activation(activation),
        x.data_ptr(),
        norm,
        engine.weight.data_ptr(),
        native.pointer(bias),
        y.data_ptr(),
        mean.data_ptr(),
        var.data_ptr(),
    )
    del vectors
    return y, mean, var


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
    engine = Engine.of(x, weight, conv)
    if engine is None:  # nothing to compute
        return reference.bn_act_conv_backward(
            g_y, g_mean, g_var, x, bn, activation, weight, y, y_mean, conv, output_mask
        )
    parts = (g_y, y, y_mean, g_mean, g_var) if g_mean is not None else (g_y, None, None, None, None)
    kept = [*parts[:2], *(native.vector(v) for v in parts[2:])]
    gradient = tuple(native.pointer(t) for t in kept)
    (vectors, norm), act = native.norm(bn, x.dtype), native.activation(activation)
    g_x = g_bn = g_weight = g_bias = None
    if output_mask[0]:
        g_x, g_bn = native.empty_image(x.shape, x.dtype), native.gradient_vectors(bn, x)
        _cpu.conv_dgrad(
            engine.arguments,
            act,
            gradient,
            x.data_ptr(),
            norm,
            engine.weight.data_ptr(),
            g_x.data_ptr(),
            native.pointer(g_bn),
        )
    if output_mask[1]:
        g_weight = native.empty_like(engine.weight)
        arguments = engine.weight_gradient_arguments(conv, x.dtype)
        _cpu.conv_wgrad(arguments, act, gradient, x.data_ptr(), norm, g_weight.data_ptr())
        g_weight = g_weight.to(weight.dtype)
    if output_mask[2]:
        # The shares of the variance, about the mean, add up to zero.
        g_bias = g_y.sum((0, 2, 3), dtype=accumulate_dtype(x.dtype))
        g_bias = (g_bias if g_mean is None else g_bias + g_mean).to(weight.dtype)
    del vectors, kept
    return g_x, g_bn, g_weight, g_bias
