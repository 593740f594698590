"""Small runs of each kernel family beside the reference in float64, for builds in which something may be wrong.

``python exercises.py MODULE FAMILY ...`` runs some on a module of :mod:`cuda_on_cpu.build`. The shapes have tails in
every direction, threads without a channel, several blocks, and tensors that are not aligned to 16 bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cuda_on_cpu import build
from cuda_on_cpu.conv_exercises import CONV_EXERCISES, CONV_TOLERANCE
from torch import Tensor

from fused_resnet.backends import cuda, reference
from fused_resnet.backends.arguments import Activation, BatchNorm, MaxPool
from fused_resnet.backends.cuda import native

__all__ = ["EXERCISES", "verify"]

# What came, and what it should be in float64.
Pair = tuple[Tensor, Tensor]

SHAPES = [(6, 12, 13, 11), (3, 7, 5, 3), (1, 3, 47, 49)]
ACTIVATION = Activation("silu")
POOL = MaxPool((3, 2), (2, 1), (1, 1))


def verify(family: str) -> None:
    """Raises AssertionError where the results of a family are not those of the reference."""
    tolerance = CONV_TOLERANCE if family in CONV_EXERCISES else 1e-5
    for i, (got, want) in enumerate(EXERCISES[family]()):
        error = ((got.double() - want).norm() / want.norm()).item()
        if not error <= tolerance:
            raise AssertionError(f"{family}: result {i}, shape {list(got.shape)}: error {error:.3g}")


def _image(shape: tuple[int, ...], layout: str) -> Tensor:
    x = torch.randn(shape) + 0.5
    if layout == "unaligned":  # one element after an allocation of 16-byte alignment
        n, c, h, w = shape
        return torch.empty(x.numel() + 1)[1:].view(n, h, w, c).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def _images(
    count: int, layouts: tuple[str, ...] = ("channels_last", "contiguous", "unaligned")
) -> Iterator[list[Tensor]]:
    torch.manual_seed(0)
    for shape in SHAPES:
        for layout in layouts:
            yield [_image(shape, layout) for _ in range(count)]


def _batch_norm(x: Tensor) -> BatchNorm:
    vectors = [torch.randn(x.shape[1]) for _ in range(3)]
    return BatchNorm(vectors[0], torch.rand(x.shape[1]) + 0.5, *vectors[1:], 1e-5)


def _wide(bn: BatchNorm) -> BatchNorm:
    return BatchNorm(*(v.double() for v in bn[:4]), bn.eps)


def _pairs(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> Iterator[Pair]:
    yield from ((g, w.double()) for g, w in zip(got, want, strict=True))


def channel_statistics() -> Iterator[Pair]:
    for (y,) in _images(1):
        yield from _pairs(cuda.channel_statistics(y), reference.channel_statistics(y.double()))


def channel_statistics_backward() -> Iterator[Pair]:
    for y, g_y in _images(2):
        mean, g_mean, g_var = (torch.randn(y.shape[1]) * 100 for _ in range(3))
        args = (g_y, g_mean, g_var, y, mean)
        got = cuda.channel_statistics_backward(*args)
        yield got, reference.statistics_backward(*(t.double() for t in args))


def bn_add_act() -> Iterator[Pair]:
    for x, residual in _images(2):
        bn, residual_bn = _batch_norm(x), _batch_norm(x)
        got = cuda.bn_add_act(x, bn, residual, residual_bn, ACTIVATION)
        yield got, reference.bn_add_act(x.double(), _wide(bn), residual.double(), _wide(residual_bn), ACTIVATION)


def bn_add_act_backward() -> Iterator[Pair]:
    for x, residual, g in _images(3):
        bn, residual_bn = _batch_norm(x), _batch_norm(x)
        got = cuda.bn_add_act_backward(g, x, bn, residual, residual_bn, ACTIVATION)
        wide = (g.double(), x.double(), _wide(bn), residual.double(), _wide(residual_bn))
        yield from _pairs(got, reference.bn_add_act_backward(*wide, ACTIVATION))


def bn_act_max_pool() -> Iterator[Pair]:
    for (x,) in _images(1, ("channels_last", "unaligned")):
        bn = _batch_norm(x)._replace(bias=torch.full((x.shape[1],), -4.0))  # negative windows: padding must not win
        got = cuda.bn_act_max_pool(x, bn, Activation("identity"), POOL)
        yield from _pairs(got, reference.bn_act_max_pool(x.double(), _wide(bn), Activation("identity"), POOL))


def bn_act_max_pool_backward() -> Iterator[Pair]:
    for (x,) in _images(1, ("channels_last", "unaligned")):
        bn = _batch_norm(x)
        out, indices = reference.bn_act_max_pool(x, bn, ACTIVATION, POOL)
        g = torch.randn_like(out)
        got = cuda.bn_act_max_pool_backward(g, indices, x, bn, ACTIVATION, POOL)
        want = reference.bn_act_max_pool_backward(g.double(), indices, x.double(), _wide(bn), ACTIVATION, POOL)
        yield from _pairs(got, want)


EXERCISES: dict[str, Callable[[], Iterator[Pair]]] = {
    f.__name__: f
    for f in (
        channel_statistics,
        channel_statistics_backward,
        bn_add_act,
        bn_add_act_backward,
        bn_act_max_pool,
        bn_act_max_pool_backward,
    )
} | CONV_EXERCISES

if __name__ == "__main__":
    native.serve("cpu", build.load(Path(sys.argv[1])))
    for family in sys.argv[2:]:
        verify(family)
