"""Small runs of each kernel family beside the reference in float64, for builds in which something may be wrong.

``python exercises.py MODULE=FAMILY,FAMILY ...`` runs some on modules of :mod:`cuda_on_cpu.build`, each in a child of
the process, and prints what each had to say, as JSON. The shapes have tails in every direction, threads without a
channel, several blocks, and tensors that are not aligned to 16 bytes. What is named by its family alone is in float32,
the convolutions in float16.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from cuda_on_cpu import build
from cuda_on_cpu.conv_exercises import CONV_EXERCISES, TYPED_CONV_EXERCISES, conv_tolerance
from torch import Tensor

from fused_resnet.backends import cuda, reference
from fused_resnet.backends.arguments import Activation, BatchNorm, MaxPool, accumulate_dtype
from fused_resnet.backends.cuda import native

__all__ = ["EXERCISES", "TYPED_EXERCISES", "same_bits", "verify"]

# What came, and what it should be in float64.
Pair = tuple[Tensor, Tensor]

# The last has whole packs of a channel, of each type.
SHAPES = [(4, 12, 13, 11), (3, 7, 5, 3), (1, 3, 47, 49), (2, 5, 8, 12)]
# What a result may differ from float64 by: the rounding of what is stored, and of sums. Positions are exact.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.uint8: 0.0}
ACTIVATION = Activation("silu")
POOL = MaxPool((3, 2), (2, 1), (1, 1))


def verify(family: str) -> None:
    """Raises AssertionError where the results of a family are not those of the reference."""
    for i, (got, want) in enumerate(_ALL[family]()):
        tolerance = conv_tolerance(family) if family.startswith("conv_") else TOLERANCE[got.dtype]
        error = ((got.double() - want).norm() / want.norm()).item()
        if not error <= tolerance:
            raise AssertionError(f"{family}: result {i}, shape {list(got.shape)}: error {error:.3g}")


def same_bits(family: str) -> None:
    """Raises AssertionError where results depend on the order in which threads and blocks run."""
    first = None
    for seed in range(10):
        with mock.patch.dict(os.environ, CUDA_ON_CPU_SEED=str(seed)):
            results = [got for got, _ in _ALL[family]()]
        first = first or results
        if not all(torch.equal(a, b) for a, b in zip(first, results, strict=True)):
            raise AssertionError(f"{family}: other bits with seed {seed}")


def _image(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    x = (torch.randn(shape) + 0.5).to(dtype)
    if layout == "unaligned":  # one element after an allocation of 16-byte alignment
        n, c, h, w = shape
        room = torch.empty(x.numel() + 1, dtype=dtype)[1:]
        return room.view(n, h, w, c).copy_(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def _images(count: int, dtype: torch.dtype) -> Iterator[list[Tensor]]:
    torch.manual_seed(0)
    for shape in SHAPES:
        for layout in ("channels_last", "contiguous", "unaligned"):
            yield [_image(shape, layout, dtype) for _ in range(count)]


def _batch_norm(x: Tensor) -> BatchNorm:
    mean, weight, bias = (torch.randn(x.shape[1], dtype=accumulate_dtype(x.dtype)) for _ in range(3))
    return BatchNorm(mean, torch.rand_like(mean) + 0.5, weight, bias, 1e-5)


def _wide(bn: BatchNorm) -> BatchNorm:
    return BatchNorm(*(v.double() for v in bn[:4]), bn.eps)


def _pairs(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> Iterator[Pair]:
    yield from ((g, w.double()) for g, w in zip(got, want, strict=True))


def channel_statistics(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for (y,) in _images(1, dtype):
        yield from _pairs(cuda.channel_statistics(y), reference.channel_statistics(y.double()))


def channel_statistics_backward(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for y, g_y in _images(2, dtype):
        mean, g_mean, g_var = (torch.randn(y.shape[1], dtype=accumulate_dtype(dtype)) * 100 for _ in range(3))
        args = (g_y, g_mean, g_var, y, mean)
        got = cuda.channel_statistics_backward(*args)
        yield got, reference.statistics_backward(*(t.double() for t in args))


def bn_add_act(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for x, residual in _images(2, dtype):
        bn, residual_bn = _batch_norm(x), _batch_norm(x)
        got = cuda.bn_add_act(x, bn, residual, residual_bn, ACTIVATION)
        yield got, reference.bn_add_act(x.double(), _wide(bn), residual.double(), _wide(residual_bn), ACTIVATION)


def bn_add_act_backward(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for x, residual, g in _images(3, dtype):
        bn, residual_bn = _batch_norm(x), _batch_norm(x)
        got = cuda.bn_add_act_backward(g, x, bn, residual, residual_bn, ACTIVATION)
        wide = (g.double(), x.double(), _wide(bn), residual.double(), _wide(residual_bn))
        yield from _pairs(got, reference.bn_add_act_backward(*wide, ACTIVATION))


def bn_act_max_pool(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for (x,) in _images(1, dtype):
        bn = _batch_norm(x)
        bn = bn._replace(bias=torch.full_like(bn.bias, -4.0))  # negative windows: padding must not win
        got = cuda.bn_act_max_pool(x, bn, Activation("identity"), POOL)
        yield from _pairs(got, reference.bn_act_max_pool(x.double(), _wide(bn), Activation("identity"), POOL))


def bn_act_max_pool_backward(dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    for (x,) in _images(1, dtype):
        bn = _batch_norm(x)
        out, indices = reference.bn_act_max_pool(x, bn, ACTIVATION, POOL)
        g = torch.randn_like(out)
        got = cuda.bn_act_max_pool_backward(g, indices, x, bn, ACTIVATION, POOL)
        want = reference.bn_act_max_pool_backward(g.double(), indices, x.double(), _wide(bn), ACTIVATION, POOL)
        yield from _pairs(got, want)


_FAMILIES = (
    channel_statistics,
    channel_statistics_backward,
    bn_add_act,
    bn_add_act_backward,
    bn_act_max_pool,
    bn_act_max_pool_backward,
)
EXERCISES: dict[str, Callable[[], Iterator[Pair]]] = {f.__name__: f for f in _FAMILIES} | CONV_EXERCISES
# In the other types, which the builds with a planted bug leave out.
TYPED_EXERCISES: dict[str, Callable[[], Iterator[Pair]]] = {
    f"{f.__name__}-{str(dtype).removeprefix('torch.')}": partial(f, dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float64)
    for f in _FAMILIES
} | TYPED_CONV_EXERCISES
_ALL = EXERCISES | TYPED_EXERCISES


def _in_a_child(module: Path, families: Iterable[str]) -> str:
    """What a child says that verifies families on a module. It has imported PyTorch already, which takes seconds."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 2)
            failed = 1
            try:
                native.serve("cpu", build.load(module))
                for family in families:
                    verify(family)
                failed = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(failed)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 1, build.SANITIZER_EXIT_CODE), f"{module}: exit code {code}"
        said.seek(0)
        text = said.read()
    return text if code or "Sanitizer" in text else ""


if __name__ == "__main__":
    runs = [argument.split("=") for argument in sys.argv[1:]]
    print(json.dumps([_in_a_child(Path(module), families.split(",")) for module, families in runs]))
