"""Sums over channels in two stages, in a fixed order.

A kernel leaves one row of partial sums for each of its programs. Rows are folded FOLD at a time until at most FOLD are
left; the last fold turns s = sum p and t = sum p (x - mean) into the gradients of a batch norm's vectors::

    g_mean = -scale s;  g_var = -1/2 scale invstd^2 t;  g_weight = invstd t;  g_bias = s
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import BatchNorm
from .configs import FOLD, Config
from .launch import ceil_div, launch

__all__ = ["column_sums", "norm_gradients"]


@triton.jit
def column_sums_kernel(
    rows_ptr,  # [rows, columns]
    out_ptr,  # [cdiv(rows, ROWS), columns]
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[g] = the sum of the ROWS rows from g ROWS."""
    blocks = tl.cdiv(columns, BLOCK)
    group = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(ROWS):
        row = group * ROWS + i
        part = tl.load(
            rows_ptr + row.to(tl.int64) * columns + column, mask=(column < columns) & (row < rows), other=0.0
        )
        total += part.to(tl.float32)
    out = out_ptr + group.to(tl.int64) * columns + column
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=column < columns)


@triton.jit
def norm_gradients_kernel(
    rows_ptr,  # [rows, stride]: s in the first C columns, t in C columns from ``t_column``
    bn,  # BatchNorm of pointers to [C]
    out_ptr,  # [4, C]
    rows,
    stride,
    t_column,
    C,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = c < C
    row = tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & ok[None, :]
    part = rows_ptr + row[:, None] * stride + c[None, :]
    s = tl.sum(tl.load(part, mask=mask, other=0.0), 0)
    t = tl.sum(tl.load(part + t_column, mask=mask, other=0.0), 0)
    invstd = 1.0 / tl.sqrt(tl.load(bn.var + c, mask=ok, other=1.0).to(tl.float32) + bn.eps)
    scale = invstd
    if bn.weight is not None:
        scale *= tl.load(bn.weight + c, mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + c, -scale * s, mask=ok)
    tl.store(out_ptr + C + c, -0.5 * scale * invstd * invstd * t, mask=ok)
    tl.store(out_ptr + 2 * C + c, invstd * t, mask=ok)
    tl.store(out_ptr + 3 * C + c, s, mask=ok)


def column_sums(
    rows: Tensor,  # [rows, columns], float32
    out: Tensor,  # as many elements as there are columns
) -> None:
    """Sums all rows into ``out``, in its type."""
    columns = rows.shape[1]
    while rows.shape[0] > FOLD:
        rows = _fold(rows, rows.new_empty(ceil_div(rows.shape[0], FOLD), columns))
    _fold(rows, out)


def norm_gradients(
    rows: Tensor,  # [rows, values, C], float32: s first
    t: int,
    bn: BatchNorm,
) -> Tensor:
    """Gradients of (mean, var, weight, bias) as one tensor [4, C], from s and the value number ``t``."""
    _, values, channels = rows.shape
    rows = rows.flatten(1)
    while rows.shape[0] > FOLD:
        rows = _fold(rows, rows.new_empty(ceil_div(rows.shape[0], FOLD), values * channels))
    out = torch.empty(4, channels, dtype=torch.float32, device=rows.device)
    config = Config({"ROWS": FOLD, "BLOCK": 32}, warps=4)
    args = (rows, bn, out, rows.shape[0], values * channels, t * channels, channels)
    launch(norm_gradients_kernel, ceil_div(channels, 32), rows.device, config, *args)
    return out


def _fold(
    rows: Tensor,  # [rows, columns], float32
    out: Tensor,  # [cdiv(rows, FOLD), columns]
) -> Tensor:
    count, columns = rows.shape
    config = Config({"ROWS": FOLD, "BLOCK": 512}, warps=4)
    programs = ceil_div(count, FOLD) * ceil_div(columns, 512)
    launch(column_sums_kernel, programs, rows.device, config, rows, out, count, columns)
    return out
