"""The gradient of a convolution's output, its statistics' share included, as a prologue and as a pass of its own.

With m = N OH OW:  g = g_y + g_mean / m + 2 g_var (y - y_mean) / m, rounded to the type of y.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import pixel_tile
from .launch import ceil_div, launch
from .tuning import pointwise

__all__ = ["Statistics", "load_gradient", "output_gradient"]


class Statistics(NamedTuple):
    """What the statistics' share is made of."""

    y: Any  # [N, K, OH, OW]
    mean: Any  # [K]
    g_mean: Any  # [K]
    g_var: Any  # [K]
    share: float  # 1 / m

    @staticmethod
    def of(y: Tensor, mean: Tensor, g_mean: Tensor | None, g_var: Tensor | None) -> Statistics | None:
        """None where no gradient reaches the statistics."""
        if g_mean is None or g_var is None:
            return None
        mean, g_mean, g_var = (v.contiguous() for v in (mean, g_mean, g_var))
        return Statistics(y, mean, g_mean, g_var, y.shape[1] / y.numel())


@triton.jit
def load_gradient(
    g_y_ptr,  # [M, K]
    statistics,  # Statistics of pointers, or None
    offsets,  # [pixels, channels]
    mask,  # [pixels, channels]
    k,  # [channels]
    k_ok,  # [channels]
):
    """g [pixels, channels] in the type of g_y, 0 where the mask is not."""
    g = tl.load(g_y_ptr + offsets, mask=mask, other=0.0)
    if statistics is not None:
        y = tl.load(statistics.y + offsets, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(statistics.mean + k, mask=k_ok, other=0.0)
        g_mean = tl.load(statistics.g_mean + k, mask=k_ok, other=0.0) * statistics.share
        g_var = tl.load(statistics.g_var + k, mask=k_ok, other=0.0) * (2 * statistics.share)
        wide = g.to(tl.float32) + g_mean[None, :] + g_var[None, :] * (y - mean[None, :])
        g = tl.where(mask, wide, 0.0).to(g_y_ptr.dtype.element_ty)
    return g


@triton.jit
def output_gradient_kernel(
    g_y_ptr,  # [M, K]
    statistics,  # Statistics of pointers
    g_ptr,  # [M, K]
    M,
    K,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(K, BC)
    k = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    m = (tl.program_id(0) // blocks) * BM + tl.arange(0, BM)
    mask = (m < M)[:, None] & (k < K)[None, :]
    offsets = (m.to(tl.int64) * K)[:, None] + k[None, :]
    tl.store(g_ptr + offsets, load_gradient(g_y_ptr, statistics, offsets, mask, k, k < K), mask=mask)


def output_gradient(
    g_y: Tensor,  # [N, K, OH, OW], channels_last
    g_mean: Tensor,  # [K]
    g_var: Tensor,  # [K]
    y: Tensor,  # [N, K, OH, OW]
    y_mean: Tensor,  # [K]
) -> Tensor:
    """g [N, K, OH, OW] as a tensor: what a library's convolution takes."""
    statistics, g = Statistics.of(y, y_mean, g_mean, g_var), torch.empty_like(g_y)
    channels, pixels = g_y.shape[1], g_y.numel() // g_y.shape[1]
    config = pixel_tile(*pointwise("output_gradient", g_y), pixels, channels, True)
    programs = ceil_div(pixels, config.tile["BM"]) * ceil_div(channels, config.tile["BC"])
    launch(output_gradient_kernel, programs, g_y.device, config, g_y, statistics, g, pixels, channels)
    return g
