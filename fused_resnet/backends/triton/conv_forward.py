"""y = conv(act(norm(x)), weight) as an implicit matrix product, for both convolution ops.

With m = (n, oh, ow), taps (r, s), and one group at a time::

    y[m, k] = sum over r, s, c of u[pixel(m, r, s), c] weight[k, r, s, c];  u = act(norm(x)), and 0 outside the image

A program computes BM x BN of y, walking taps x channels BK at a time. The prologue turns x into u between load and
product and zeroes what lies outside after the activation. Programs that share a tile of x are neighbours, so that L2
serves it.
"""

import triton
import triton.language as tl

from .elementwise import activate, apply_norm, norm_vectors

__all__ = ["conv_tile"]


@triton.jit
def conv_tile(
    x_ptr,  # [N, H, W, groups C]
    bn,  # BatchNorm of pointers to [groups C], or None
    weight_ptr,  # [groups K, R, S, C]
    size,  # Geometry
    M,  # N OH OW
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A program's tile: its number in M, its pixels [BM], channels [BN], which of them exist, y [BM, BN] in float32."""
    blocks = tl.cdiv(size.K, BN)
    column = tl.program_id(0) % (blocks * size.groups)
    tile = tl.program_id(0) // (blocks * size.groups)
    group = column // blocks
    m = tile * BM + tl.arange(0, BM)
    k = (column % blocks) * BN + tl.arange(0, BN)
    k_ok = k < size.K
    k += group * size.K
    top = m // size.OW % size.OH * size.stride_h - size.padding_h
    left = m % size.OW * size.stride_w - size.padding_w
    image = (m // (size.OW * size.OH)).to(tl.int64)
    weight_row = weight_ptr + k.to(tl.int64) * (size.R * size.S * size.C)
    steps = tl.cdiv(size.C, BK)
    y = tl.zeros([BM, BN], tl.float32)
    for i in range(size.R * size.S * steps):
        tap = i // steps
        c = (i % steps) * BK + tl.arange(0, BK)
        c_ok = c < size.C
        h = top + tap // size.S * size.dilation_h
        w = left + tap % size.S * size.dilation_w
        inside = (m < M) & (h >= 0) & (h < size.H) & (w >= 0) & (w < size.W)
        mask = inside[:, None] & c_ok[None, :]
        pixel = (image * size.H + h) * size.W + w
        x_row = x_ptr + pixel * (size.C * size.groups) + group * size.C
        u = tl.load(x_row[:, None] + c[None, :], mask=mask, other=0.0)
        if (bn is not None) or ACTIVATION != "identity":
            mean, scale, shift = norm_vectors(bn, group * size.C + c, c_ok)
            z = activate(apply_norm(u.to(tl.float32), bn, mean, scale, shift), slope, ACTIVATION)
            u = tl.where(mask, z, 0.0).to(x_ptr.dtype.element_ty)
        b = tl.load(weight_row[None, :] + (tap * size.C + c)[:, None], mask=k_ok[None, :] & c_ok[:, None], other=0.0)
        y = tl.dot(u, b, y, input_precision=PRECISION)
    return tile, m, k, k_ok, y
