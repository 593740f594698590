"""The filter's gradient of bn_act_conv, with both prologues: g is made, and u made again, while loading.

With m = (n, oh, ow), one group and one tap (r, s) at a time::

    g_weight[k, r, s, c] = sum over m of g[m, k] u[pixel(m, r, s), c]

A program computes BM x BN (output x input channels) of one tap over a share of the pixels, BK at a time: split-K. The
shares' results are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .channel_sums import column_sums
from .conv_geometry import geometry
from .elementwise import activate, apply_norm, norm_vectors
from .launch import ceil_div, dense_norm, float32_precision, launch
from .output_gradient import Statistics, load_gradient
from .tuning import product

__all__ = ["conv_wgrad"]

PROGRAMS = 512  # to aim at: some three for each multiprocessor of the largest GPUs
STEPS = 8  # at least, of BK pixels each, for a program: fewer would not pay for its partial result


@triton.jit
def conv_wgrad_kernel(
    g_y_ptr,  # [N, OH, OW, groups K]
    statistics,  # Statistics of pointers, or None
    x_ptr,  # [N, H, W, groups C]
    bn,  # BatchNorm of pointers to [groups C], or None
    out_ptr,  # [splits, groups K, R, S, C]
    size,  # Geometry
    M,  # N OH OW
    steps,  # of a split
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    rows, columns, taps = tl.cdiv(size.K, BM), tl.cdiv(size.C, BN), size.R * size.S
    program = tl.program_id(0)
    row, program = program % rows, program // rows
    column, program = program % columns, program // columns
    tap, program = program % taps, program // taps
    group, split = program % size.groups, program // size.groups
    k = row * BM + tl.arange(0, BM)
    c = column * BN + tl.arange(0, BN)
    k_ok = k < size.K
    c_ok = c < size.C
    k += group * size.K
    all_c = group * size.C + c
    mean, scale, shift = norm_vectors(bn, all_c, c_ok)
    g_weight = tl.zeros([BM, BN], tl.float32)
    for i in range(steps):
        m = (split * steps + i) * BK + tl.arange(0, BK)
        offsets = (m.to(tl.int64) * (size.K * size.groups))[:, None] + k[None, :]
        g = load_gradient(g_y_ptr, statistics, offsets, (m < M)[:, None] & k_ok[None, :], k, k_ok)
        h = m // size.OW % size.OH * size.stride_h - size.padding_h + tap // size.S * size.dilation_h
        w = m % size.OW * size.stride_w - size.padding_w + tap % size.S * size.dilation_w
        inside = (m < M) & (h >= 0) & (h < size.H) & (w >= 0) & (w < size.W)
        mask = inside[:, None] & c_ok[None, :]
        pixel = ((m // (size.OW * size.OH)).to(tl.int64) * size.H + h) * size.W + w
        u = tl.load(x_ptr + (pixel * (size.C * size.groups))[:, None] + all_c[None, :], mask=mask, other=0.0)
        if (bn is not None) or ACTIVATION != "identity":
            z = activate(apply_norm(u.to(tl.float32), bn, mean, scale, shift), slope, ACTIVATION)
            u = tl.where(mask, z, 0.0).to(x_ptr.dtype.element_ty)
        g_weight = tl.dot(tl.trans(g), u, g_weight, input_precision=PRECISION)
    out_row = out_ptr + ((split.to(tl.int64) * size.groups * size.K + k) * taps + tap) * size.C
    out = out_row[:, None] + c[None, :]
    tl.store(out, g_weight.to(out_ptr.dtype.element_ty), mask=k_ok[:, None] & c_ok[None, :])


def conv_wgrad(
    g_y: Tensor,  # [N, K, OH, OW]
    statistics: Statistics | None,
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    conv: Conv,
) -> Tensor:
    """g_weight in the type and layout of ``weight``."""
    size = geometry(x, weight, conv)
    pixels = x.shape[0] * size.OH * size.OW
    config = product("conv_wgrad", x, activation, weight, conv)
    tiles = ceil_div(size.K, config.tile["BM"]) * ceil_div(size.C, config.tile["BN"]) * size.R * size.S * size.groups
    total = ceil_div(pixels, config.tile["BK"])
    steps = ceil_div(total, max(1, min(ceil_div(PROGRAMS, tiles), total // STEPS)))
    splits = ceil_div(total, steps)
    g_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    parts = g_weight if splits == 1 else g_weight.new_empty(splits, weight.numel(), dtype=torch.float32)
    launch(
        conv_wgrad_kernel,
        tiles * splits,
        x.device,
        config,
        g_y,
        statistics,
        x,
        dense_norm(bn),
        parts,
        size,
        pixels,
        steps,
        activation.negative_slope,
        ACTIVATION=activation.name,
        PRECISION=float32_precision(x),
    )
    if splits > 1:
        column_sums(parts, g_weight)
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    return g_weight if channels_last else torch.empty_like(weight).copy_(g_weight)
