"""Convolution, batch norm, residual add and activation for inference, on the engine."""

from __future__ import annotations

from torch import Tensor

from ... import _cpu
from .. import reference
from ..arguments import Activation, BatchNorm, Conv
from . import native
from .engine import Engine
from .packed_filters import packed_filter

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
    """out [N, K, OH, OW]; norm, residual and activation in the convolution's epilogue, the filter packed once."""
    engine = Engine.of(x, weight, conv, keeps_filter=True)
    if engine is None:  # nothing to compute
        return reference.conv_bn_add_act(x, weight, bias, bn, residual, activation, conv)
    out = engine.empty_output(x)
    packed = packed_filter(weight, engine)
    (vectors, norm), bias = native.norm(bn, x.dtype), native.vector(bias)
    _cpu.conv_bn_add_act(
        engine.arguments,
        native.activation(activation),
        x.data_ptr(),
        engine.weight.data_ptr(),
        packed.data_ptr(),
        native.pointer(bias),
        norm,
        native.pointer(residual),
        out.data_ptr(),
    )
    del vectors
    return out
