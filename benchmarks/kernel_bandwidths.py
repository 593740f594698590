"""The bandwidth of every CUDA kernel beside that of a measured copy of the same tensor: see gpu_check.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_resnet.backends import cuda
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool
from fused_resnet.bench.device_time import median_ms

__all__ = ["bandwidths", "rows"]

RELU, SILU = Activation("relu"), Activation("silu")
POOL = MaxPool((3, 3), (2, 2), (1, 1))
POINTWISE = Conv((1, 1), (0, 0), (1, 1), 1)

# A call, and the bytes that it must move.
Kernels = dict[str, tuple[Callable[[], Any], float]]


def _batch_norm(channels: int, device: torch.device) -> BatchNorm:
    return BatchNorm(*(torch.rand(channels, device=device) + 0.5 for _ in range(4)), 1e-5)


def _passes(x: Tensor) -> Kernels:
    """The pointwise kernels and the statistics on x [N, C, H, W]."""
    residual, g, bn = torch.randn_like(x), torch.randn_like(x), _batch_norm(x.shape[1], x.device)
    out, indices = cuda.bn_act_max_pool(x, bn, RELU, POOL)
    g_out, pooled = torch.randn_like(out), out.numel() * (x.element_size() + 1)
    mean, var = bn.mean, bn.var
    return {
        "channel_statistics": (lambda: cuda.channel_statistics(x), x.nbytes),
        "channel_statistics_backward": (
            lambda: cuda.channel_statistics_backward(g, mean, var, x, mean),
            3 * x.nbytes,
        ),
        "bn_add_act": (lambda: cuda.bn_add_act(x, bn, residual, None, RELU), 3 * x.nbytes),
        "bn_add_act, silu": (lambda: cuda.bn_add_act(x, bn, residual, None, SILU), 3 * x.nbytes),
        "bn_add_act_backward": (lambda: cuda.bn_add_act_backward(g, x, bn, residual, None, RELU), 5 * x.nbytes),
        "bn_act_max_pool": (lambda: cuda.bn_act_max_pool(x, bn, RELU, POOL), x.nbytes + pooled),
        "bn_act_max_pool_backward": (
            lambda: cuda.bn_act_max_pool_backward(g_out, indices, x, bn, RELU, POOL),
            2 * x.nbytes + pooled,
        ),
    }


def _pointwise_convolutions(x: Tensor) -> Kernels:
    """The fused 1x1 convolution of x [N, C, H, W], as the first of a bottleneck; the filter's bytes are left out."""
    c = x.shape[1]
    k = max(c // 4, 64)
    bn, k_bn = _batch_norm(c, x.device), _batch_norm(k, x.device)
    weight = torch.randn(k, c, 1, 1, device=x.device, dtype=x.dtype)
    y, mean, var = cuda.bn_act_conv(x, bn, RELU, weight, None, POINTWISE, True)
    g_y = torch.randn_like(y)

    def backward(*mask: bool) -> Any:
        return cuda.bn_act_conv_backward(g_y, mean, var, x, bn, RELU, weight, y, mean, POINTWISE, (*mask, False))

    return {
        "conv_forward": (
            lambda: cuda.bn_act_conv(x, bn, RELU, weight, None, POINTWISE, True),
            x.nbytes + y.nbytes,
        ),
        "conv_dgrad": (lambda: backward(True, False), 2 * x.nbytes + 2 * y.nbytes),
        "conv_wgrad": (lambda: backward(False, True), x.nbytes + 2 * y.nbytes),
        "conv_bn_add_act": (
            lambda: cuda.conv_bn_add_act(x, weight, None, k_bn, y, RELU, POINTWISE),
            x.nbytes + 2 * y.nbytes,
        ),
    }


def bandwidths(x: Tensor, time_ms: Callable[[Callable[[], Any]], float]) -> Iterator[dict[str, Any]]:
    """A row for each kernel on x [N, C, H, W]: ms, GB/s, and the part of a copy's GB/s on the same tensor."""
    target = torch.empty_like(x)
    copy = 2 * x.nbytes / time_ms(lambda: target.copy_(x)) / 1e6
    beside = {"kernel": "copy", "shape": list(x.shape), "dtype": str(x.dtype), "gb_per_s": copy, "of_copy": 1.0}
    yield beside
    with mock.patch.dict(os.environ, FUSED_RESNET_CUDA_CONV="fused"):
        for kernels in (_passes, _pointwise_convolutions):
            for name, (call, moved_bytes) in kernels(x).items():
                milliseconds = time_ms(call)
                rate = moved_bytes / milliseconds / 1e6
                yield beside | {"kernel": name, "ms": milliseconds, "gb_per_s": rate, "of_copy": rate / copy}


def rows(
    device: torch.device, shapes: Iterable[tuple[int, ...]], dtypes: Iterable[torch.dtype]
) -> Iterator[dict[str, Any]]:
    """Those of :func:`bandwidths` for every shape [N, C, H, W] and type; the median of 20 calls each."""

    def time_ms(call: Callable[[], Any]) -> float:
        for _ in range(3):  # to warm up
            call()
        return median_ms({"": call}, device, 20)[""]

    for dtype in dtypes:
        for shape in shapes:
            x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
            yield from bandwidths(x, time_ms)
