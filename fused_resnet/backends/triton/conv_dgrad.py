"""The input's gradient of bn_act_conv, with act' and the batch norm's channel sums in its epilogue.

With m = (n, h, w) a pixel of x, oh = (h + padding - r dilation) / stride where that divides, and one group at a time::

    p[m, c] = act'(norm(x)) sum over r, s, k of g[pixel(m, r, s), k] weight[k, r, s, c];  g_x = scale p
    s = sum p;  t = sum p (x - mean)

Which taps divide depends on h and w modulo the stride, the phase of a pixel, alone. A program computes BM x BN of g_x,
pixels of one phase, walking the phase's taps x output channels BK at a time; g is made while loading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .channel_sums import norm_gradients
from .conv_geometry import Phases, filter_krsc, geometry
from .elementwise import activate_derivative, apply_norm, norm_vectors
from .launch import ceil_div, dense_norm, float32_precision, launch
from .output_gradient import Statistics, load_gradient
from .tuning import product

__all__ = ["conv_dgrad"]


@triton.jit
def taps_of_phase(phase, phases, padding, R):
    """The first of the taps that reach a phase, and how many there are."""
    shifted = phase + padding
    first = tl.where(shifted % phases.divisor == 0, shifted // phases.divisor * phases.inverse % phases.step, R)
    return first, (R - first + phases.step - 1) // phases.step


@triton.jit
def conv_dgrad_kernel(
    g_y_ptr,  # [N, OH, OW, groups K]
    statistics,  # Statistics of pointers, or None
    weight_ptr,  # [groups K, R, S, C]
    x_ptr,  # [N, H, W, groups C]
    bn,  # BatchNorm of pointers to [groups C], or None
    g_x_ptr,  # [N, H, W, groups C]
    sums_ptr,  # [tiles and phases, 2, groups C]: s and t; None without a norm
    size,  # Geometry
    phases_h,  # Phases
    phases_w,  # Phases
    N,
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    blocks = tl.cdiv(size.C, BN)
    column = tl.program_id(0) % (blocks * size.groups)
    part = tl.program_id(0) // (blocks * size.groups)
    group = column // blocks
    phase = part % (phases_h.count * phases_w.count)
    phase_h = phase // phases_w.count
    phase_w = phase % phases_w.count
    rows = tl.cdiv(size.H - phase_h, size.stride_h)
    lines = tl.cdiv(size.W - phase_w, size.stride_w)
    m = part // (phases_h.count * phases_w.count) * BM + tl.arange(0, BM)
    m_ok = m < N * rows * lines
    image = (m // (rows * lines)).to(tl.int64)
    row = m // lines % rows  # h = phase_h + row stride_h
    line = m % lines  # w = phase_w + line stride_w
    c = (column % blocks) * BN + tl.arange(0, BN)
    c_ok = c < size.C
    first_r, taps_r = taps_of_phase(phase_h, phases_h, size.padding_h, size.R)
    first_s, taps_s = taps_of_phase(phase_w, phases_w, size.padding_w, size.S)
    steps = tl.cdiv(size.K, BK)
    outputs = size.K * size.groups
    origin = ((image * size.OH + row) * size.OW + line) * outputs
    p = tl.zeros([BM, BN], tl.float32)
    for i in range(taps_r * taps_s * steps):
        tap = i // steps
        k = (i % steps) * BK + tl.arange(0, BK)
        k_ok = k < size.K
        k += group * size.K
        r = first_r + tap // taps_s * phases_h.step
        s = first_s + tap % taps_s * phases_w.step
        down = (phase_h + size.padding_h - r * size.dilation_h) // size.stride_h
        right = (phase_w + size.padding_w - s * size.dilation_w) // size.stride_w
        oh = row + down
        ow = line + right
        inside = m_ok & (oh >= 0) & (oh < size.OH) & (ow >= 0) & (ow < size.OW)
        offsets = origin[:, None] + ((down.to(tl.int64) * size.OW + right) * outputs + k)[None, :]
        g = load_gradient(g_y_ptr, statistics, offsets, inside[:, None] & k_ok[None, :], k, k_ok)
        weight_row = weight_ptr + ((k.to(tl.int64) * size.R + r) * size.S + s) * size.C
        b = tl.load(weight_row[:, None] + c[None, :], mask=k_ok[:, None] & c_ok[None, :], other=0.0)
        p = tl.dot(g, b, p, input_precision=PRECISION)
    c += group * size.C
    channels = size.C * size.groups
    pixel = (image * size.H + phase_h + row * size.stride_h) * size.W + phase_w + line * size.stride_w
    offsets = (pixel * channels)[:, None] + c[None, :]
    mask = m_ok[:, None] & c_ok[None, :]
    if (bn is not None) or ACTIVATION != "identity":
        mean, scale, shift = norm_vectors(bn, c, c_ok)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        p = tl.where(mask, p * activate_derivative(apply_norm(x, bn, mean, scale, shift), slope, ACTIVATION), 0.0)
        if bn is not None:
            out = sums_ptr + part.to(tl.int64) * 2 * channels + c
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
    config = product("conv_dgrad", x, activation, weight, conv)
    phases_h = Phases.of(size.H, size.stride_h, size.dilation_h)
    phases_w = Phases.of(size.W, size.stride_w, size.dilation_w)
    pixels = x.shape[0] * ceil_div(size.H, size.stride_h) * ceil_div(size.W, size.stride_w)  # of the largest phase
    parts = ceil_div(pixels, config.tile["BM"]) * phases_h.count * phases_w.count
    sums = None if bn is None else torch.empty(parts, 2, x.shape[1], dtype=torch.float32, device=x.device)
    launch(
        conv_dgrad_kernel,
        parts * size.groups * ceil_div(size.C, config.tile["BN"]),
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
        phases_h,
        phases_w,
        x.shape[0],
        activation.negative_slope,
        ACTIVATION=activation.name,
        PRECISION=float32_precision(x),
    )
    return g_x, None if bn is None or sums is None else norm_gradients(sums, 1, bn)
