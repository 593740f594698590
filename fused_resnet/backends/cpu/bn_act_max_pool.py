"""Batch norm, activation and max pooling."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpu
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
    layout = memory_format(x)  # kernels know channels_last alone
    x = x.contiguous(memory_format=torch.channels_last)
    size = (*x.shape[:2], *pool.output_size((x.shape[2], x.shape[3])))
    out = native.empty_image(size, x.dtype)
    indices = native.empty_like(out, torch.uint8)
    vectors, norm = native.norm(bn, x.dtype)
    _cpu.bn_act_max_pool(
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.pool_shape(x, out, pool),
        native.threads(),
        x.data_ptr(),
        norm,
        out.data_ptr(),
        indices.data_ptr(),
    )
    del vectors
    return out.contiguous(memory_format=layout), indices.contiguous(memory_format=layout)


def bn_act_max_pool_backward(
    g_out: Tensor,  # [N, C, OH, OW]
    indices: Tensor,  # [N, C, OH, OW], uint8
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor | None]:
    """g_x [N, C, H, W] and g_bn [4, C]."""
    layout = memory_format(x)
    g_out, indices, x = (t.contiguous(memory_format=torch.channels_last) for t in (g_out, indices, x))
    g_x, g_bn = native.empty_like(x), native.gradient_vectors(bn, x)
    vectors, norm = native.norm(bn, x.dtype)
    _cpu.bn_act_max_pool_backward(
        native.DTYPES[x.dtype],
        native.activation(activation),
        native.pool_shape(x, g_out, pool),
        native.threads(),
        g_out.data_ptr(),
        indices.data_ptr(),
        x.data_ptr(),
        norm,
        g_x.data_ptr(),
        native.pointer(g_bn),
    )
    del vectors
    return g_x.contiguous(memory_format=layout), g_bn
