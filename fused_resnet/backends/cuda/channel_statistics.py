"""Mean and variance of each channel, and what their gradients add to that of the tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..arguments import accumulate_dtype
from . import native

__all__ = ["channel_statistics", "channel_statistics_backward"]


def channel_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [K] of the dense y [N, K, H, W]; zeros for an empty one."""
    if y.numel() == 0:
        return reference.channel_statistics(y)
    kernels, dtype, view = native.kernels(y), native.DTYPES[y.dtype], native.view(y)
    mean = torch.empty(y.shape[1], dtype=accumulate_dtype(y.dtype), device=y.device)
    var = torch.empty_like(mean)
    workspace = native.workspace(y, kernels.channel_statistics_workspace(dtype, view))
    kernels.channel_statistics(
        native.queue(y), dtype, view, y.data_ptr(), mean.data_ptr(), var.data_ptr(), workspace.data_ptr()
    )
    return mean, var


def channel_statistics_backward(
    g_y: Tensor,  # [N, K, H, W]
    g_mean: Tensor,  # [K]
    g_var: Tensor,  # [K]
    y: Tensor,  # [N, K, H, W]
    y_mean: Tensor,  # [K]
) -> Tensor:
    """g = g_y + g_mean / m + 2 g_var (y - y_mean) / m, with m = N H W."""
    if y.numel() == 0:
        return reference.statistics_backward(g_y, g_mean, g_var, y, y_mean)
    g, vectors = torch.empty_like(y), [native.vector(v) for v in (y_mean, g_mean, g_var)]
    native.kernels(y).channel_statistics_backward(
        native.queue(y),
        native.DTYPES[y.dtype],
        native.view(y),
        g_y.data_ptr(),
        y.data_ptr(),
        *(native.pointer(v) for v in vectors),
        g.data_ptr(),
    )
    return g
