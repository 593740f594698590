"""Batch norm, residual add and activation, one pass forward and one backward.

Forward: out = act(z), z = norm(x) + norm_r(residual). Backward, with p = g_out act'(z): g_x = scale p,
g_residual = scale_r p, and of each norm s = sum p and t = sum p (x - mean), summed in the same pass.

A tile is BM pixels x BC channels. Forward a program has one tile; backward it walks ``tiles`` of them and keeps the
sums in registers, element by element, so that each program reduces once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm
from . import configs
from .channel_sums import norm_gradients
from .configs import pixel_tile
from .elementwise import activate, activate_derivative, apply_norm, norm_vectors
from .launch import View, ceil_div, dense_norm, launch, reference_if_empty
from .tuning import pointwise

__all__ = ["bn_add_act", "bn_add_act_backward"]


@triton.jit
def tile_offsets(image, pixel, c, P, C, CHANNELS_LAST: tl.constexpr):
    """Offsets [BM, BC] of a tile; see View."""
    plane = image.to(tl.int64) * P * C
    if CHANNELS_LAST:
        offsets = plane + (pixel.to(tl.int64) * C)[:, None] + c[None, :]
    else:
        offsets = plane + (c.to(tl.int64) * P)[None, :] + pixel[:, None]
    return offsets


@triton.jit
def bn_add_act_kernel(
    x_ptr,  # [images, P, C] or [images, C, P]
    bn,  # BatchNorm of pointers to [C], or None
    residual_ptr,  # as x, or None
    residual_bn,  # as bn
    out_ptr,  # as x
    P,
    C,
    slope,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    tiles = tl.cdiv(P, BM)
    row = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    pixel = (row % tiles) * BM + tl.arange(0, BM)
    mask = (pixel < P)[:, None] & (c < C)[None, :]
    offsets = tile_offsets(row // tiles, pixel, c, P, C, CHANNELS_LAST)
    mean, scale, shift = norm_vectors(bn, c, c < C)
    z = apply_norm(tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32), bn, mean, scale, shift)
    if residual_ptr is not None:
        r_mean, r_scale, r_shift = norm_vectors(residual_bn, c, c < C)
        r = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        z += apply_norm(r, residual_bn, r_mean, r_scale, r_shift)
    tl.store(out_ptr + offsets, activate(z, slope, ACTIVATION).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bn_add_act_backward_kernel(
    g_out_ptr,  # [images, P, C] or [images, C, P]
    x_ptr,  # as g_out
    bn,  # BatchNorm of pointers to [C], or None
    residual_ptr,  # as g_out, or None
    residual_bn,  # as bn
    g_x_ptr,  # as g_out
    g_residual_ptr,  # as g_out, or None
    sums_ptr,  # [images parts, 3, C]: s, t of x, t of the residual; None where no norm needs them
    P,
    C,
    parts,  # programs of an image in a column of channels
    tiles,  # of a program
    slope,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    row = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    mean, scale, shift = norm_vectors(bn, c, c < C)
    r_mean, r_scale, r_shift = norm_vectors(residual_bn, c, c < C)
    s = tl.zeros([BM, BC], tl.float32)
    t = tl.zeros([BM, BC], tl.float32)
    r_t = tl.zeros([BM, BC], tl.float32)
    for tile in range(tiles):
        pixel = ((row % parts) * tiles + tile) * BM + tl.arange(0, BM)
        mask = (pixel < P)[:, None] & (c < C)[None, :]
        offsets = tile_offsets(row // parts, pixel, c, P, C, CHANNELS_LAST)
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        z = apply_norm(x, bn, mean, scale, shift)
        if residual_ptr is not None:
            r = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            z += apply_norm(r, residual_bn, r_mean, r_scale, r_shift)
        p = tl.load(g_out_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        p *= activate_derivative(z, slope, ACTIVATION)
        p = tl.where(mask, p, 0.0)
        s += p
        tl.store(g_x_ptr + offsets, (p * scale[None, :]).to(g_x_ptr.dtype.element_ty), mask=mask)
        if bn is not None:
            t += p * (x - mean[None, :])
        if residual_ptr is not None:
            g_r = (p * r_scale[None, :]).to(g_residual_ptr.dtype.element_ty)
            tl.store(g_residual_ptr + offsets, g_r, mask=mask)
            if residual_bn is not None:
                r_t += p * (r - r_mean[None, :])
    if sums_ptr is not None:
        out = sums_ptr + row.to(tl.int64) * 3 * C + c
        tl.store(out, tl.sum(s, 0), mask=c < C)
        if bn is not None:
            tl.store(out + C, tl.sum(t, 0), mask=c < C)
        if residual_bn is not None:
            tl.store(out + 2 * C, tl.sum(r_t, 0), mask=c < C)


@reference_if_empty
def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> Tensor:
    """out [N, C, H, W]."""
    view, out = View.of(x), torch.empty_like(x)
    config = pixel_tile(*pointwise("bn_add_act", x), view.pixels, view.channels, view.channels_last)
    tiles = ceil_div(view.pixels, config.tile["BM"]) * ceil_div(view.channels, config.tile["BC"])
    launch(
        bn_add_act_kernel,
        view.images * tiles,
        x.device,
        config,
        x,
        dense_norm(bn),
        residual,
        dense_norm(residual_bn),
        out,
        view.pixels,
        view.channels,
        activation.negative_slope,
        ACTIVATION=activation.name,
        CHANNELS_LAST=view.channels_last,
    )
    return out


@reference_if_empty
def bn_add_act_backward(
    g_out: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_residual [N, C, H, W], g_residual_bn [4, C]."""
    view, g_x = View.of(x), torch.empty_like(x)
    g_residual = None if residual is None else torch.empty_like(x)
    config = pixel_tile(*pointwise("bn_add_act_backward", x), view.pixels, view.channels, view.channels_last)
    rows, columns = config.tile["BM"], config.tile["BC"]
    tiles = ceil_div(view.images * ceil_div(view.pixels, rows), configs.PARTS)
    parts = ceil_div(view.pixels, rows * tiles)
    bn, residual_bn = dense_norm(bn), dense_norm(residual_bn)
    sums = None
    if bn is not None or residual_bn is not None:
        sums = torch.empty(view.images * parts, 3, view.channels, dtype=torch.float32, device=x.device)
    launch(
        bn_add_act_backward_kernel,
        view.images * parts * ceil_div(view.channels, columns),
        x.device,
        config,
        g_out,
        x,
        bn,
        residual,
        residual_bn,
        g_x,
        g_residual,
        sums,
        view.pixels,
        view.channels,
        parts,
        tiles,
        activation.negative_slope,
        ACTIVATION=activation.name,
        CHANNELS_LAST=view.channels_last,
    )
    g_bn = None if bn is None or sums is None else norm_gradients(sums, 1, bn)
    g_residual_bn = None if residual_bn is None or sums is None else norm_gradients(sums, 2, residual_bn)
    return g_x, g_bn, g_residual, g_residual_bn
