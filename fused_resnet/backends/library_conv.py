"""PyTorch's convolution between passes of a GPU backend: the vendor library's, where ours does not compute it.

Forward: ``u = act(norm(x))`` | convolution | statistics. Backward: ``g``, the gradient of y with that of its statistics
| both gradient convolutions | ``act'``, the norm and its channel sums. ``u`` is written again in backward, not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .arguments import Activation, BatchNorm, Conv, accumulate_dtype

__all__ = ["LibraryConv", "bias_gradient"]


class LibraryConv(NamedTuple):
    """The passes around the convolution, as a backend has them."""

    bn_add_act: Callable[..., Tensor]
    bn_add_act_backward: Callable[..., tuple[Tensor | None, ...]]
    channel_statistics: Callable[[Tensor], tuple[Tensor, Tensor]]
    output_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # of g_y, g_mean, g_var, y, y_mean

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        bn: BatchNorm | None,
        activation: Activation,
        weight: Tensor,  # [K, C / groups, R, S]
        bias: Tensor | None,  # [K]
        conv: Conv,
        statistics: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
        y = _conv2d(self._prologue(x, bn, activation), weight, bias, conv)
        if not statistics:
            nothing = y.new_empty(0, dtype=accumulate_dtype(x.dtype))
            return y, nothing, nothing.clone()
        return y, *self.channel_statistics(y)

    def inference(
        self,
        x: Tensor,  # [N, C, H, W]
        weight: Tensor,  # [K, C / groups, R, S]
        bias: Tensor | None,  # [K]
        bn: BatchNorm | None,
        residual: Tensor | None,  # [N, K, OH, OW]
        activation: Activation,
        conv: Conv,
    ) -> Tensor:
        """out = act(norm(conv(x) + bias) + residual) [N, K, OH, OW]."""
        return self.bn_add_act(_conv2d(x, weight, bias, conv), bn, residual, None, activation)

    def backward(
        self,
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
        output_mask: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """g_x [N, C, H, W], g_bn [4, C], g_weight; ``output_mask`` asks for (x and bn, weight)."""
        if not any(output_mask):
            return None, None, None
        g = g_y
        if g_mean is not None and g_var is not None:
            g = self.output_gradient(g_y, g_mean, g_var, y, y_mean)
        u = self._prologue(x, bn, activation) if output_mask[1] else x
        p, g_weight, _ = reference.convolution_backward(g, u, weight, conv, (*output_mask, False))
        if p is None:
            return None, None, g_weight
        p = p.contiguous(memory_format=torch.channels_last)
        if _is_identity(bn, activation):
            return p, None, g_weight
        g_x, g_bn, *_ = self.bn_add_act_backward(p, x, bn, None, None, activation)
        return g_x, g_bn, g_weight

    def _prologue(self, x: Tensor, bn: BatchNorm | None, activation: Activation) -> Tensor:
        return x if _is_identity(bn, activation) else self.bn_add_act(x, bn, None, None, activation)


def bias_gradient(
    g_y: Tensor,  # [N, K, OH, OW]
    g_mean: Tensor | None,  # [K]
    dtype: torch.dtype,
) -> Tensor:
    """The gradient [K] of a convolution's bias: of the statistics' shares that of the mean alone is left.

    The shares of the variance, about the mean, add up to zero.
    """
    g_bias = g_y.sum((0, 2, 3), dtype=accumulate_dtype(g_y.dtype))
    return (g_bias if g_mean is None else g_bias + g_mean).to(dtype)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv) -> Tensor:
    return F.conv2d(x, weight, bias, *conv).contiguous(memory_format=torch.channels_last)


def _is_identity(bn: BatchNorm | None, activation: Activation) -> bool:
    return bn is None and activation.name == "identity"
