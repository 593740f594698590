"""Mean and biased variance of each channel, in two stages, deterministic.

Stage one splits N H W over programs, so that 64 channels fill a GPU. Each leaves three numbers a channel: a pivot (the
mean of its first tile), S1 = sum (y - pivot) and S2 = sum (y - pivot)^2, so no digits are lost where the mean dwarfs
the deviation. Stage two folds n_i values about pivot_i, in float64::

    mean = sum (n_i pivot_i + S1_i) / n
    n var = sum S2_i + 2 (pivot_i - mean) S1_i + n_i (pivot_i - mean)^2
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .configs import FOLD, Config, pixel_tile
from .launch import ceil_div, launch
from .tuning import pointwise

__all__ = ["channel_statistics", "fold_statistics", "store_tile_statistics"]


@triton.jit
def store_tile_statistics(
    y,  # [BM, channels], float32
    ok,  # [BM]: which pixels exist
    count,  # how many
    parts_ptr,  # [3, parts, C]
    part,
    parts,
    c,  # [channels]
    c_ok,  # [channels]
    C,
):
    """Leaves pivot, S1 and S2 of one tile."""
    pivot = tl.sum(tl.where(ok[:, None], y, 0.0), 0) / count
    d = tl.where(ok[:, None], y - pivot[None, :], 0.0)
    out = parts_ptr + part.to(tl.int64) * C + c
    step = tl.cast(parts, tl.int64) * C
    tl.store(out, pivot, mask=c_ok)
    tl.store(out + step, tl.sum(d, 0), mask=c_ok)
    tl.store(out + 2 * step, tl.sum(d * d, 0), mask=c_ok)


@triton.jit
def channel_statistics_kernel(
    y_ptr,  # [P, C]
    parts_ptr,  # [3, parts, C]
    P,
    C,
    parts,
    tiles,  # of a program
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    blocks = tl.cdiv(C, BC)
    part = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    c_ok = c < C
    pivot = tl.zeros([BC], tl.float32)
    s1 = tl.zeros([BM, BC], tl.float32)
    s2 = tl.zeros([BM, BC], tl.float32)
    for tile in range(tiles):
        pixel = (part * tiles + tile) * BM + tl.arange(0, BM)
        mask = (pixel < P)[:, None] & c_ok[None, :]
        y = tl.load(y_ptr + (pixel.to(tl.int64) * C)[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if tile == 0:
            pivot = tl.sum(y, 0) / tl.minimum(BM, P - part * tiles * BM)
        d = tl.where(mask, y - pivot[None, :], 0.0)
        s1 += d
        s2 += d * d
    out = parts_ptr + part.to(tl.int64) * C + c
    step = tl.cast(parts, tl.int64) * C
    tl.store(out, pivot, mask=c_ok)
    tl.store(out + step, tl.sum(s1, 0), mask=c_ok)
    tl.store(out + 2 * step, tl.sum(s2, 0), mask=c_ok)


@triton.jit
def fold_statistics_kernel(
    parts_ptr,  # [3, parts, C]
    folded_ptr,  # [3, cdiv(parts, ROWS), C], or None for the last fold
    mean_ptr,  # [C]
    var_ptr,  # [C]
    parts,
    size,  # values of a part, but for the last one
    total,  # values of all
    C,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(C, BLOCK)
    group = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    c_ok = c < C
    row = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n = tl.maximum(tl.minimum(total - row * size, size), 0).to(tl.float64)[:, None]
    mask = (row < parts)[:, None] & c_ok[None, :]
    part = parts_ptr + (row * C)[:, None] + c[None, :]
    step = tl.cast(parts, tl.int64) * C
    pivot = tl.load(part, mask=mask, other=0.0).to(tl.float64)
    s1 = tl.load(part + step, mask=mask, other=0.0).to(tl.float64)
    s2 = tl.load(part + 2 * step, mask=mask, other=0.0).to(tl.float64)
    count = tl.sum(n, 0)
    mean = tl.sum(n * pivot + s1, 0) / count
    d = pivot - mean[None, :]
    squares = tl.sum(s2 + 2 * d * s1 + n * d * d, 0)
    if folded_ptr is None:
        tl.store(mean_ptr + c, mean.to(tl.float32), mask=c_ok)
        tl.store(var_ptr + c, (squares / count).to(tl.float32), mask=c_ok)
    else:
        kept = mean.to(tl.float32)
        rest = mean - kept.to(tl.float64)  # what the pivot in float32 leaves out
        out = folded_ptr + group.to(tl.int64) * C + c
        step = tl.cast(tl.cdiv(parts, ROWS), tl.int64) * C
        tl.store(out, kept, mask=c_ok)
        tl.store(out + step, (count * rest).to(tl.float32), mask=c_ok)
        tl.store(out + 2 * step, (squares + count * rest * rest).to(tl.float32), mask=c_ok)


def fold_statistics(
    parts: Tensor,  # [3, parts, C]
    size: int,
    total: int,
) -> tuple[Tensor, Tensor]:
    """Mean [C] and biased variance [C] from parts of ``size`` values each, the last of what remains of ``total``."""
    _, count, channels = parts.shape
    config = Config({"ROWS": FOLD, "BLOCK": 32}, warps=4)
    blocks = ceil_div(channels, 32)
    mean, var = (torch.empty(channels, dtype=torch.float32, device=parts.device) for _ in range(2))
    while count > FOLD:
        groups = ceil_div(count, FOLD)
        folded = parts.new_empty(3, groups, channels)
        args = (parts, folded, mean, var, count, size, total, channels)
        launch(fold_statistics_kernel, groups * blocks, parts.device, config, *args)
        parts, count, size = folded, groups, size * FOLD
    launch(fold_statistics_kernel, blocks, parts.device, config, parts, None, mean, var, count, size, total, channels)
    return mean, var


def channel_statistics(
    y: Tensor,  # [N, K, H, W], channels_last
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [K] of y."""
    pixels, channels = y.numel() // y.shape[1], y.shape[1]
    config = pixel_tile(*pointwise("channel_statistics", y), pixels, channels, True)
    rows, columns = config.tile["BM"], config.tile["BC"]
    tiles = ceil_div(ceil_div(pixels, rows), configs.PARTS)
    count = ceil_div(pixels, rows * tiles)
    parts = torch.empty(3, count, channels, dtype=torch.float32, device=y.device)
    programs = count * ceil_div(channels, columns)
    launch(channel_statistics_kernel, programs, y.device, config, y, parts, pixels, channels, count, tiles)
    return fold_statistics(parts, rows * tiles, pixels)
