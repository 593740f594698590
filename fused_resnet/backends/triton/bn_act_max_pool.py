"""Batch norm, activation and max pooling in one pass, with the winner's position in its window as one byte.

Forward: out = max over a window of u = act(norm(x)), u rounded to the type of x. The first of equals wins, and the last
NaN. Backward gathers: g_u of a pixel is the sum of g_out over those of the windows covering it whose index names it, at
most ceil(R / stride) x ceil(S / stride) of them, so no two programs write one pixel. Then as in :mod:`.bn_add_act`.

A tile is BM pixels (of out forward, of x backward) x BC channels, in channels_last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, MaxPool, memory_format
from . import configs
from .channel_sums import norm_gradients
from .configs import pixel_tile
from .elementwise import activate, activate_derivative, apply_norm, norm_vectors
from .launch import ceil_div, dense_norm, launch, reference_if_empty
from .tuning import pointwise

__all__ = ["bn_act_max_pool", "bn_act_max_pool_backward"]


class Geometry(NamedTuple):
    """Sizes of a pooling, as kernels take them."""

    H: Any
    W: Any
    OH: Any
    OW: Any
    stride_h: Any
    stride_w: Any
    padding_h: Any
    padding_w: Any


@triton.jit
def bn_act_max_pool_kernel(
    x_ptr,  # [N, H, W, C]
    bn,  # BatchNorm of pointers to [C], or None
    out_ptr,  # [N, OH, OW, C]
    indices_ptr,  # [N, OH, OW, C], uint8
    size,  # Geometry
    P,  # N OH OW
    C,
    slope,
    R: tl.constexpr,
    S: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    pixel = (tl.program_id(0) // blocks) * BM + tl.arange(0, BM)
    ok = (pixel < P)[:, None] & (c < C)[None, :]
    top = pixel // size.OW % size.OH * size.stride_h - size.padding_h
    left = pixel % size.OW * size.stride_w - size.padding_w
    image = (pixel // (size.OW * size.OH)).to(tl.int64)
    mean, scale, shift = norm_vectors(bn, c, c < C)
    best = tl.full([BM, BC], float("-inf"), tl.float32)
    index = tl.full([BM, BC], -1, tl.int32)
    for position in range(R * S):  # unrolled, some activations would spill
        h = top + position // S
        w = left + position % S
        inside = (h >= 0) & (h < size.H) & (w >= 0) & (w < size.W)
        mask = ok & inside[:, None]
        offsets = (((image * size.H + h) * size.W + w) * C)[:, None] + c[None, :]
        u = apply_norm(tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32), bn, mean, scale, shift)
        u = activate(u, slope, ACTIVATION).to(out_ptr.dtype.element_ty).to(tl.float32)
        wins = mask & ((u > best) | (u != u) | (index < 0))
        best = tl.where(wins, u, best)
        index = tl.where(wins, position, index)
    offsets = (pixel.to(tl.int64) * C)[:, None] + c[None, :]
    tl.store(out_ptr + offsets, best.to(out_ptr.dtype.element_ty), mask=ok)
    tl.store(indices_ptr + offsets, index.to(tl.uint8), mask=ok)


@triton.jit
def gather_gradient(
    g_out_ptr,  # [N, OH, OW, C]
    indices_ptr,  # [N, OH, OW, C], uint8
    size,  # Geometry
    pixel,  # [BM], of x
    c,  # [BC]
    ok,  # [BM, BC]
    C,
    R: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """g_u [BM, BC]: the gradients of the windows that chose each pixel, of the ROWS x COLUMNS that may cover it."""
    h = pixel // size.W % size.H + size.padding_h
    w = pixel % size.W + size.padding_w
    image = (pixel // (size.W * size.H)).to(tl.int64)
    g = tl.zeros(ok.shape, tl.float32)
    for window in tl.static_range(ROWS * COLUMNS):
        oh = h // size.stride_h - window // COLUMNS
        ow = w // size.stride_w - window % COLUMNS
        r = h - oh * size.stride_h
        s = w - ow * size.stride_w
        covers = (oh >= 0) & (oh < size.OH) & (ow >= 0) & (ow < size.OW) & (r < R) & (s < S)
        offsets = (((image * size.OH + oh) * size.OW + ow) * C)[:, None] + c[None, :]
        mask = ok & covers[:, None]
        chosen = mask & (tl.load(indices_ptr + offsets, mask=mask, other=0).to(tl.int32) == (r * S + s)[:, None])
        g += tl.load(g_out_ptr + offsets, mask=chosen, other=0.0).to(tl.float32)
    return g


@triton.jit
def bn_act_max_pool_backward_kernel(
    g_out_ptr,  # [N, OH, OW, C]
    indices_ptr,  # [N, OH, OW, C], uint8
    x_ptr,  # [N, H, W, C]
    bn,  # BatchNorm of pointers to [C], or None
    g_x_ptr,  # [N, H, W, C]
    sums_ptr,  # [parts, 2, C]: s and t; None without a norm
    size,  # Geometry
    P,  # N H W
    C,
    tiles,  # of a program
    slope,
    R: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    part = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    mean, scale, shift = norm_vectors(bn, c, c < C)
    sum_p = tl.zeros([BM, BC], tl.float32)
    sum_t = tl.zeros([BM, BC], tl.float32)
    for tile in range(tiles):
        pixel = (part * tiles + tile) * BM + tl.arange(0, BM)
        mask = (pixel < P)[:, None] & (c < C)[None, :]
        p = gather_gradient(g_out_ptr, indices_ptr, size, pixel, c, mask, C, R, S, ROWS, COLUMNS)
        offsets = (pixel.to(tl.int64) * C)[:, None] + c[None, :]
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        p *= activate_derivative(apply_norm(x, bn, mean, scale, shift), slope, ACTIVATION)
        tl.store(g_x_ptr + offsets, (p * scale[None, :]).to(g_x_ptr.dtype.element_ty), mask=mask)
        if bn is not None:
            p = tl.where(mask, p, 0.0)
            sum_p += p
            sum_t += p * (x - mean[None, :])
    if sums_ptr is not None:
        out = sums_ptr + part.to(tl.int64) * 2 * C + c
        tl.store(out, tl.sum(sum_p, 0), mask=c < C)
        tl.store(out + C, tl.sum(sum_t, 0), mask=c < C)


@reference_if_empty
def bn_act_max_pool(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor]:
    """out [N, C, OH, OW] and the winner's position in its window, uint8 [N, C, OH, OW]."""
    layout = memory_format(x)  # kernels know channels_last alone
    x = x.contiguous(memory_format=torch.channels_last)
    n, channels, *size = x.shape
    height, width = pool.output_size((size[0], size[1]))
    out = torch.empty((n, channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    indices = torch.empty_like(out, dtype=torch.uint8)
    pixels = n * height * width
    config = pixel_tile(*pointwise("bn_act_max_pool", x), pixels, channels, True)
    programs = ceil_div(pixels, config.tile["BM"]) * ceil_div(channels, config.tile["BC"])
    args = (x, dense_norm(bn), out, indices, _geometry(x, pool), pixels, channels, activation.negative_slope)
    constants = {"R": pool.kernel_size[0], "S": pool.kernel_size[1], "ACTIVATION": activation.name}
    launch(bn_act_max_pool_kernel, programs, x.device, config, *args, **constants)
    return out.contiguous(memory_format=layout), indices.contiguous(memory_format=layout)


@reference_if_empty
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
    g_x, bn = torch.empty_like(x), dense_norm(bn)
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    config = pixel_tile(*pointwise("bn_act_max_pool_backward", x), pixels, channels, True)
    rows, columns = config.tile["BM"], config.tile["BC"]
    tiles = ceil_div(ceil_div(pixels, rows), configs.PARTS)
    parts = ceil_div(pixels, rows * tiles)
    sums = None if bn is None else torch.empty(parts, 2, channels, dtype=torch.float32, device=x.device)
    programs = parts * ceil_div(channels, columns)
    args = (g_out, indices, x, bn, g_x, sums, _geometry(x, pool), pixels, channels, tiles, activation.negative_slope)
    covering = [ceil_div(k, s) for k, s in zip(pool.kernel_size, pool.stride, strict=True)]
    constants = {"R": pool.kernel_size[0], "S": pool.kernel_size[1], "ROWS": covering[0], "COLUMNS": covering[1]}
    launch(bn_act_max_pool_backward_kernel, programs, x.device, config, *args, **constants, ACTIVATION=activation.name)
    return g_x.contiguous(memory_format=layout), None if bn is None or sums is None else norm_gradients(sums, 1, bn)


def _geometry(x: Tensor, pool: MaxPool) -> Geometry:
    size = (x.shape[2], x.shape[3])
    return Geometry(*size, *pool.output_size(size), *pool.stride, *pool.padding)
