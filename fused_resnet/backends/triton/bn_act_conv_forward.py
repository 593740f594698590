"""The forward kernel of bn_act_conv: y and, in its epilogue, the first stage of its statistics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .channel_statistics import fold_statistics, store_tile_statistics
from .conv_forward import conv_tile
from .conv_geometry import empty_output, filter_krsc, geometry
from .launch import ceil_div, dense_norm, float32_precision, launch
from .tuning import product

__all__ = ["bn_act_conv_forward"]


@triton.jit
def bn_act_conv_kernel(
    x_ptr,  # [N, H, W, groups C]
    bn,  # BatchNorm of pointers to [groups C], or None
    weight_ptr,  # [groups K, R, S, C]
    bias_ptr,  # [groups K], or None
    y_ptr,  # [N, OH, OW, groups K]
    parts_ptr,  # [3, tiles, groups K], or None without statistics
    size,  # Geometry
    M,  # N OH OW
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    tile, m, k, k_ok, y = conv_tile(x_ptr, bn, weight_ptr, size, M, slope, ACTIVATION, PRECISION, BM, BN, BK)
    channels = size.K * size.groups
    if bias_ptr is not None:
        y += tl.load(bias_ptr + k, mask=k_ok, other=0.0).to(tl.float32)[None, :]
    stored = y.to(y_ptr.dtype.element_ty)
    offsets = (m.to(tl.int64) * channels)[:, None] + k[None, :]
    tl.store(y_ptr + offsets, stored, mask=(m < M)[:, None] & k_ok[None, :])
    if parts_ptr is not None:
        # Of y as it is stored: what the next op normalises.
        count = tl.minimum(M - tile * BM, BM)
        tiles = tl.cdiv(M, BM)
        store_tile_statistics(stored.to(tl.float32), m < M, count, parts_ptr, tile, tiles, k, k_ok, channels)


def bn_act_conv_forward(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    conv: Conv,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
    y, size = empty_output(x, weight, conv), geometry(x, weight, conv)
    pixels, channels = x.shape[0] * size.OH * size.OW, weight.shape[0]
    config = product("bn_act_conv", x, activation, weight, conv)
    tiles = ceil_div(pixels, config.tile["BM"])
    parts = torch.empty(3, tiles, channels, dtype=torch.float32, device=x.device) if statistics else None
    launch(
        bn_act_conv_kernel,
        tiles * size.groups * ceil_div(size.K, config.tile["BN"]),
        x.device,
        config,
        x,
        dense_norm(bn),
        filter_krsc(weight),
        None if bias is None else bias.detach().contiguous(),
        y,
        parts,
        size,
        pixels,
        activation.negative_slope,
        ACTIVATION=activation.name,
        PRECISION=float32_precision(x),
    )
    if parts is None:
        nothing = torch.empty(0, dtype=torch.float32, device=x.device)
        return y, nothing, nothing.clone()
    return y, *fold_statistics(parts, config.tile["BM"], pixels)
