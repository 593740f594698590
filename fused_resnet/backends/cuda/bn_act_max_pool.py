"""Batch norm, activation and max pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..arguments import Activation, BatchNorm, MaxPool, memory_format
from . import native

__all__ = ["bn_act_max_pool", "bn_act_max_pool_backward"]


def bn_act_max_pool(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor]:
    """out [N, C, OH, OW] and the winner's position in its window, uint8 [N, C, OH, OW]."""
    if x.numel() == 0:
        return reference.bn_act_max_pool(x, bn, activation, pool)
    size = (*x.shape[:2], *pool.output_size((x.shape[2], x.shape[3])))
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    indices = torch.empty_like(out, dtype=torch.uint8)
    vectors, norm = native.norm(bn, x.dtype)
    native.kernels(x).bn_act_max_pool(
        native.queue(x),
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.pool_shape(x, out, pool),
        memory_format(x) == torch.channels_last,
        x.data_ptr(),
        norm,
        out.data_ptr(),
        indices.data_ptr(),
    )
    del vectors
    return out, indices


def bn_act_max_pool_backward(
    g_out: Tensor,  # [N, C, OH, OW]
    indices: Tensor,  # [N, C, OH, OW], uint8
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor | None]:
    """g_x [N, C, H, W] and g_bn [4, C]."""
    if x.numel() == 0:
        return reference.bn_act_max_pool_backward(g_out, indices, x, bn, activation, pool)
    kernels, dtype, shape = native.kernels(x), native.DTYPES[x.dtype], native.pool_shape(x, g_out, pool)
    channels_last = memory_format(x) == torch.channels_last
    g_x, g_bn = torch.empty_like(x), native.gradient_vectors(bn, x)
    vectors, norm = native.norm(bn, x.dtype)
    workspace = native.workspace(x, kernels.bn_act_max_pool_backward_workspace(dtype, shape, channels_last))
    kernels.bn_act_max_pool_backward(
        native.queue(x),
        dtype,
        native.activation(activation),
        shape,
        channels_last,
        g_out.data_ptr(),
        indices.data_ptr(),
        x.data_ptr(),
        norm,
        g_x.data_ptr(),
        native.pointer(g_bn),
        workspace.data_ptr(),
    )
    del vectors
    return g_x, g_bn
