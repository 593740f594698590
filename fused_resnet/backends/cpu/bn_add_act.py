"""Batch norm, residual add and activation."""

from __future__ import annotations

from torch import Tensor

from ... import _cpu
from ..arguments import Activation, BatchNorm
from . import native

__all__ = ["bn_add_act", "bn_add_act_backward"]


def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> Tensor:
    """out [N, C, H, W]."""
    out = native.empty_like(x)
    (vectors, norm), (residual_vectors, residual_norm) = native.norm(bn, x.dtype), native.norm(residual_bn, x.dtype)
    _cpu.bn_add_act(
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.view(x),
        native.threads(),
        x.data_ptr(),
        norm,
        native.pointer(residual),
        residual_norm,
        out.data_ptr(),
    )
    del vectors, residual_vectors
    return out


def bn_add_act_backward(
    g_out: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_residual [N, C, H, W], g_residual_bn [4, C]."""
    g_x = native.empty_like(x)
    g_residual = None if residual is None else native.empty_like(x)
    g_bn, g_residual_bn = native.gradient_vectors(bn, x), native.gradient_vectors(residual_bn, x)
    (vectors, norm), (residual_vectors, residual_norm) = native.norm(bn, x.dtype), native.norm(residual_bn, x.dtype)
    _cpu.bn_add_act_backward(
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.view(x),
        native.threads(),
        g_out.data_ptr(),
        x.data_ptr(),
        norm,
        native.pointer(residual),
        residual_norm,
        g_x.data_ptr(),
        native.pointer(g_bn),
        native.pointer(g_residual),
        native.pointer(g_residual_bn),
    )
    del vectors, residual_vectors
    return g_x, g_bn, g_residual, g_residual_bn
