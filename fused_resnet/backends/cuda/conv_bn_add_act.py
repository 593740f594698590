"""Convolution, batch norm, residual add and activation for inference: fused, or PyTorch's convolution and one pass."""

from __future__ import annotations

from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .bn_act_conv import LIBRARY_CONV
from .fused_conv import FusedConv

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
    fused = FusedConv.of("conv_bn_add_act", x, weight, conv)
    if fused is not None:
        return fused.bn_add_act(x, bias, bn, residual, activation)
    return LIBRARY_CONV.inference(x, weight, bias, bn, residual, activation, conv)
