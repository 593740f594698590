"""Batch norm, residual add and activation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
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
    if x.numel() == 0:
        return reference.bn_add_act(x, bn, residual, residual_bn, activation)
    out = torch.empty_like(x)
    (vectors, norm), (residual_vectors, residual_norm) = native.norm(bn, x.dtype), native.norm(residual_bn, x.dtype)
    native.kernels(x).bn_add_act(
        native.queue(x),
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.view(x),
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
    if x.numel() == 0:
        return reference.bn_add_act_backward(g_out, x, bn, residual, residual_bn, activation)
    kernels, dtype, view = native.kernels(x), native.DTYPES[x.dtype], native.view(x)
    g_x, g_residual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    g_bn, g_residual_bn = native.gradient_vectors(bn, x), native.gradient_vectors(residual_bn, x)
    (vectors, norm), (residual_vectors, residual_norm) = native.norm(bn, x.dtype), native.norm(residual_bn, x.dtype)
    workspace = native.workspace(x, kernels.bn_add_act_backward_workspace(dtype, view))
    kernels.bn_add_act_backward(
        native.queue(x),
        dtype,
        native.activation(activation),
        view,
        g_out.data_ptr(),
        x.data_ptr(),
        norm,
        native.pointer(residual),
        residual_norm,
        g_x.data_ptr(),
        native.pointer(g_bn),
        native.pointer(g_residual),
        native.pointer(g_residual_bn),
        workspace.data_ptr(),
    )
    del vectors, residual_vectors
    return g_x, g_bn, g_residual, g_residual_bn
