"""The input's gradient of bn_act_conv, with act' and the batch norm's channel sums in its epilogue.

With m = (n, h, w) a pixel of x, oh = (h + padding - r dilation) / stride where that divides, and one group at a time::

    p[m, c] = act'(norm(x)) sum over r, s, k of g[pixel(m, r, s), k] weight[k, r, s, c];  g_x = scale p
    s = sum p;  t = sum p (x - mean)

A program computes BM x BN of g_x, walking taps x output channels BK at a time; g is made while loading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .channel_sums import norm_gradients
from .conv_geometry import filter_krsc, geometry
from .elementwise import activate_derivative, apply_norm, norm_vectors
from .launch import ceil_div, dense_norm, float32_precision, launch
from .output_gradient import Statistics, load_gradient
from .tuning import product

__all__ = ["conv_dgrad"]


@triton.jit
def dgrad_tile(
    g_y_ptr,  # [N, OH, OW, groups K]
    statistics,  # Statistics of pointers, or None
    weight_ptr,  # [groups K, R, S, C]
    size,  # Geometry
    m,  # [BM], pixels of x
    m_ok,  # [BM]
    group,
    c,  # [BN], channels of the group
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of u [BM, BN] in float32."""
    bottom = m // size.W % size.H + size.padding_h
    right = m % size.W + size.padding_w
    image = (m // (size.W * size.H)).to(tl.int64)
    steps = tl.cdiv(size.K, BK)
    taps = size.R * size.S
    g_u = tl.zeros([BM, BN], tl.float32)
    for i in range(taps * steps):
        tap = i // steps
        k = (i % steps) * BK + tl.arange(0, BK)
        k_ok = k < size.K
        k += group * size.K
        h = bottom - tap // size.S * size.dilation_h
        w = right - tap % size.S * size.dilation_w
        oh = h // size.stride_h
        ow = w // size.stride_w
        divides = (oh * size.stride_h == h) & (ow * size.stride_w == w)
        inside = m_ok & divides & (h >= 0) & (oh < size.OH) & (w >= 0) & (ow < size.OW)
        pixel = (image * size.OH + oh) * size.OW + ow
        offsets = (pixel * (size.K * size.groups))[:, None] + k[None, :]
        g = load_gradient(g_y_ptr, statistics, offsets, inside[:, None] & k_ok[None, :], k, k_ok)
        row = weight_ptr + (k.to(tl.int64) * taps + tap) * size.C
        b = tl.load(row[:, None] + c[None, :], mask=k_ok[:, None] & (c < size.C)[None, :], other=0.0)
        g_u = tl.dot(g, b, g_u, input_precision=PRECISION)
    return g_u


@triton.jit
def conv_dgrad_kernel(
    g_y_ptr,  # [N, OH, OW, groups K]
    statistics,  # Statistics of pointers, or None
    weight_ptr,  # [groups K, R, S, C]
    x_ptr,  # [N, H, W, groups C]
    bn,  # BatchNorm of pointers to [groups C], or None
    g_x_ptr,  # [N, H, W, groups C]
    sums_ptr,  # [tiles, 2, groups C]: s and t; None without a norm
    size,  # Geometry
    M,  # N H W
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    blocks = tl.cdiv(size.C, BN)
    column = tl.program_id(0) % (blocks * size.groups)
    tile = tl.program_id(0) // (blocks * size.groups)
    group = column // blocks
    m = tile * BM + tl.arange(0, BM)
    c = (column % blocks) * BN + tl.arange(0, BN)
    p = dgrad_tile(g_y_ptr, statistics, weight_ptr, size, m, m < M, group, c, PRECISION, BM, BN, BK)
    c_ok = c < size.C
    c += group * size.C
    channels = size.C * size.groups
    offsets = (m.to(tl.int64) * channels)[:, None] + c[None, :]
    mask = (m < M)[:, None] & c_ok[None, :]
    if (bn is not None) or ACTIVATION != "identity":
        mean, scale, shift = norm_vectors(bn, c, c_ok)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        p = tl.where(mask, p * activate_derivative(apply_norm(x, bn, mean, scale, shift), slope, ACTIVATION), 0.0)
        if bn is not None:
            out = sums_ptr + tile.to(tl.int64) * 2 * channels + c
            tl.store(out, tl.sum(p, 0), mask=c_ok)
            tl.store(out + channels, tl.sum(p * (x - mean[None, :]), 0), mask=c_ok)
            p *= scale[None, :]
    tl.store(g_x_ptr + offsets, p.to(g_x_ptr.dtype.element_ty), mask=mask)


def conv_dgrad(
    g_y: Tensor,  # [N, K, OH, OW]
    statistics: Statistics | None,
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    conv: Conv,
) -> tuple[Tensor, Tensor | None]:
    """g_x [N, C, H, W] and g_bn [4, C]."""
    size, g_x, bn = geometry(x, weight, conv), torch.empty_like(x), dense_norm(bn)
    pixels, channels = x.numel() // x.shape[1], x.shape[1]
    config = product("conv_dgrad", x, weight, conv)
    tiles = ceil_div(pixels, config.tile["BM"])
    sums = None if bn is None else torch.empty(tiles, 2, channels, dtype=torch.float32, device=x.device)
    launch(
        conv_dgrad_kernel,
        tiles * size.groups * ceil_div(size.C, config.tile["BN"]),
        x.device,
        config,
        g_y,
        statistics,
        filter_krsc(weight),
        x,
        bn,
        g_x,
        sums,
        size,
        pixels,
        activation.negative_slope,
        ACTIVATION=activation.name,
        PRECISION=float32_precision(x),
    )
    return g_x, None if bn is None or sums is None else norm_gradients(sums, 1, bn)
