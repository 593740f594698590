"""A call of every launcher of the binding, and the same from two host threads at once.

``python calls.py MODULE (own|shared) NAME ...`` makes some from two host threads, on a module of
:mod:`cuda_on_cpu.build`, with workspaces of their own or, by mistake, shared ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cuda_on_cpu import build
from cuda_on_cpu.streams import Runtime
from torch import Tensor

from fused_resnet.backends import cuda, reference
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool
from fused_resnet.backends.cuda import native

__all__ = ["CALLS", "THREE", "WITH_WORKSPACE", "Arguments", "bits_agree_at_once", "results", "sharing_workspaces"]

RELU, SILU, POOL = Activation("relu"), Activation("silu"), MaxPool((3, 3), (2, 2), (1, 1))
ONE, THREE = Conv((1, 1), (0, 0), (1, 1), 1), Conv((2, 2), (1, 1), (1, 1), 1)


class Arguments:
    """Tensors of an op, filled anew by ``refill``."""

    def __init__(self, dtype: torch.dtype, conv: Conv = ONE, kernel: int = 1, size: tuple[int, int] = (9, 7)) -> None:
        self.dtype, self.conv = dtype, conv
        self.x, self.g, self.residual = (self.image(2, 40, *size) for _ in range(3))
        self.weight = self.image(24, 40, kernel, kernel)
        self.bn, self.residual_bn = (BatchNorm(*(torch.rand(40) for _ in range(4)), 1e-5) for _ in range(2))
        self.k_vectors = [torch.rand(24) for _ in range(3)]
        self.k_bn = BatchNorm(*(torch.rand(24) for _ in range(4)), 1e-5)
        out = conv.output_size(size, (kernel, kernel))
        self.y, self.g_y = self.image(2, 24, *out), self.image(2, 24, *out)
        self.pooled, self.indices = reference.bn_act_max_pool(self.x, None, RELU, POOL)

    def image(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            parts = value if isinstance(value, tuple | list) else [value]
            yield from (part for part in parts if isinstance(part, Tensor))

    def refill(self) -> None:
        for t in self.tensors():
            t.copy_(torch.randint(9, t.shape) if t.dtype == torch.uint8 else torch.rand(t.shape) + 0.25)

    def backward(self, *mask: bool) -> Any:
        mean, g_mean, g_var = self.k_vectors
        statistics = (self.g_y, g_mean, g_var)
        prologue = (self.x, self.bn, SILU, self.weight)
        return cuda.bn_act_conv_backward(*statistics, *prologue, self.y, mean, self.conv, (*mask, False))


# Every function of the module that launches -> a call that reaches it.
CALLS: dict[str, Callable[[Arguments], Any]] = {
    "channel_statistics": lambda a: cuda.channel_statistics(a.x),
    "channel_statistics_backward": lambda a: cuda.channel_statistics_backward(
        a.g_y, a.k_vectors[1], a.k_vectors[2], a.y, a.k_vectors[0]
    ),
    "bn_add_act": lambda a: cuda.bn_add_act(a.x, a.bn, a.residual, a.residual_bn, SILU),
    "bn_add_act_backward": lambda a: cuda.bn_add_act_backward(a.g, a.x, a.bn, a.residual, a.residual_bn, SILU),
    "bn_act_max_pool": lambda a: cuda.bn_act_max_pool(a.x, a.bn, RELU, POOL),
    "bn_act_max_pool_backward": lambda a: cuda.bn_act_max_pool_backward(a.pooled, a.indices, a.x, a.bn, RELU, POOL),
    "conv_forward": lambda a: cuda.bn_act_conv(a.x, a.bn, SILU, a.weight, None, a.conv, True),
    "conv_bn_add_act": lambda a: cuda.conv_bn_add_act(a.x, a.weight, None, a.k_bn, a.y, SILU, a.conv),
    "conv_dgrad": lambda a: a.backward(True, False),
    "conv_wgrad": lambda a: a.backward(False, True),
}


# Those of more than one launch, from one of which to the next the workspace keeps what the other needs.
WITH_WORKSPACE = (
    "channel_statistics",
    "bn_add_act_backward",
    "bn_act_max_pool_backward",
    "conv_forward",
    "conv_dgrad",
    "conv_wgrad",
)


def results(value: Any) -> list[Tensor]:
    return [t for t in (value if isinstance(value, tuple) else (value,)) if t is not None]


def of_two_threads(dtype: torch.dtype) -> list[Arguments]:
    return [Arguments(dtype, size=(24, 32)) for _ in range(2)]  # so large that sums have partial sums


def results_at_once(
    runtime: Runtime, name: str, both: list[Arguments], devices: tuple[int, int]
) -> Iterator[list[Tensor]]:
    """Of two host threads, each on a stream of its device."""
    for arguments, device in zip(both, devices, strict=True):
        for t in arguments.tensors():
            runtime.place(t, device)
    return map(results, runtime.at_once([partial(CALLS[name], arguments) for arguments in both], devices))


def bits_agree_at_once(runtime: Runtime, name: str, dtype: torch.dtype, devices: tuple[int, int]) -> list[bool]:
    """Whether each result of two host threads that launch at once has the bits of a serial run."""
    both = of_two_threads(dtype)
    alone = [results(CALLS[name](arguments)) for arguments in both]
    at_once = results_at_once(runtime, name, both, devices)
    return [
        torch.equal(got, want)
        for thread, wanted in zip(at_once, alone, strict=True)
        for got, want in zip(thread, wanted, strict=True)
    ]


def sharing_workspaces() -> Any:
    """A mistake: one workspace of a size for all."""
    kept = cache(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
    return mock.patch.object(native, "workspace", lambda x, nbytes: kept(nbytes))


if __name__ == "__main__":
    native.serve("cpu", build.load(Path(sys.argv[1])))
    os.environ["FUSED_RESNET_CUDA_CONV"] = "fused"
    if sys.argv[2] == "shared":
        sharing_workspaces().start()
    runtime = Runtime.of_kernels()
    for name in sys.argv[3:]:
        print(f"at once: {name}", file=sys.stderr, flush=True)
        list(results_at_once(runtime, name, of_two_threads(torch.bfloat16), (0, 0)))
