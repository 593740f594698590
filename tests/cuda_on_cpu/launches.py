"""Threads and dynamic shared memory that the launchers ask for, of every kernel, for what the compile gate predicts.

Each launcher is called in every type, layout, alignment, activation and tile that it tells apart, on the CPU runtime,
which keeps what a launch asks for; nothing is computed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from cuda_on_cpu import cuda_emulated
from cuda_on_cpu.streams import Runtime
from support.kernel_usage import demangle
from torch import Tensor

from fused_resnet.backends import cuda
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool, accumulate_dtype
from fused_resnet.backends.cuda import native
from fused_resnet.backends.cuda.conv_algorithm import TILES
from fused_resnet.backends.cuda.fused_conv import FusedConv

__all__ = ["Launch", "launches"]

SHAPE = (2, 8, 4, 4)  # whole packs of 16 bytes in every type and layout
POOL, CONV = MaxPool((2, 2), (2, 2), (0, 0)), Conv((1, 1), (0, 0), (1, 1), 1)


class Launch(NamedTuple):
    """What a launch asks for."""

    threads: int  # of a block
    dynamic_shared_bytes: int  # of a block


def launches() -> dict[str, Launch]:
    """By kernel, named as :mod:`support.kernel_usage` does; ValueError where one is launched in two ways."""
    cuda_emulated.ensure()
    module = native.kernels(torch.empty(0))
    with Runtime.of_kernels().launching_into_nothing():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for aligned in (True, False):
                _pointwise(dtype, aligned)
                if dtype != torch.float64:
                    _convolutions(dtype, aligned)
    found = _asked_for(module)
    if several := {kernel: asked for kernel, asked in found.items() if len(asked) > 1}:
        raise ValueError(f"expected one kind of launch of a kernel, got {several}")
    return {kernel: launch for kernel, (launch,) in found.items()}


def _image(dtype: torch.dtype, aligned: bool, channels_last: bool = True) -> Tensor:
    n, c, h, w = SHAPE
    room = torch.empty(n * c * h * w + 1, dtype=dtype)[0 if aligned else 1 :][: n * c * h * w]
    return room.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else room.view(SHAPE)


def _vectors(dtype: torch.dtype, channels: int, count: int) -> Iterator[Tensor]:
    return (torch.empty(channels, dtype=accumulate_dtype(dtype)) for _ in range(count))


def _batch_norm(dtype: torch.dtype, channels: int) -> BatchNorm:
    return BatchNorm(*_vectors(dtype, channels, 4), 1e-5)


def _pointwise(dtype: torch.dtype, aligned: bool) -> None:
    bn, vectors = _batch_norm(dtype, SHAPE[1]), tuple(_vectors(dtype, SHAPE[1], 3))
    for channels_last in (True, False):
        x = _image(dtype, aligned, channels_last)
        cuda.channel_statistics(x)
        cuda.channel_statistics_backward(x, vectors[0], vectors[1], x, vectors[2])
        for activation, residual in product(("relu", "silu"), (x, None)):
            cuda.bn_add_act(x, bn, residual, None, Activation(activation))
            cuda.bn_add_act_backward(x, x, bn, residual, None, Activation(activation))
        for activation in ("relu", "silu"):
            out, indices = cuda.bn_act_max_pool(x, bn, Activation(activation), POOL)
            cuda.bn_act_max_pool_backward(out, indices, x, bn, Activation(activation), POOL)


def _convolutions(dtype: torch.dtype, whole_chunks: bool) -> None:
    c, k = (SHAPE[1], SHAPE[1]) if whole_chunks else (5, 3)  # nor is the filter, which the last launch stores
    x = torch.empty(2, c, 4, 4, dtype=dtype, memory_format=torch.channels_last)
    weight = torch.empty(k, c, 1, 1, dtype=dtype)
    bn, act, (g_mean, g_var, y_mean) = _batch_norm(dtype, c), Activation("relu"), _vectors(dtype, k, 3)
    with mock.patch.dict(os.environ, FUSED_RESNET_CUDA_CONV="fused"):
        fused = FusedConv.of("bn_act_conv", x, weight, CONV)
    assert fused is not None
    for tile, tf32 in product(TILES, (False, True)):
        call: Any = fused._replace(call=(fused.call[0], tf32, TILES.index(tile), fused.shape))
        y, _, _ = call.forward(x, bn, act, None, True)
        call.bn_add_act(x, None, bn, None, act)
        call.backward(y, g_mean, g_var, x, bn, act, weight, y, y_mean, (True, True, False))


def _asked_for(module: ModuleType) -> dict[str, set[Launch]]:
    assert module.__file__
    raw: list[tuple[int, int, int]] = []
    callback = ctypes.CFUNCTYPE(None, *[ctypes.c_size_t] * 3)(lambda *values: raw.append(values))
    ctypes.CDLL(module.__file__).cuda_on_cpu_each_launch(callback)
    table = subprocess.run(["nm", module.__file__], capture_output=True, text=True, check=True).stdout
    symbols = {int(words[0], 16): words[2] for line in table.splitlines() if len(words := line.split()) == 3}
    found: dict[str, set[Launch]] = defaultdict(set)
    names = demangle([symbols[place] for place, _, _ in raw])
    for name, (_, threads, dynamic_shared_bytes) in zip(names, raw, strict=True):
        found[name].add(Launch(threads, dynamic_shared_bytes))
    return found
