"""In 16 bits the kernels' error is at most twice that of the reference backend in the same type, against float64.

Nothing is added to the bound. But no error counts as less than what storing a tensor in the type costs by itself: where
the reference happens to be nearer than that, it is by luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from cuda_on_cpu import cuda_emulated
from support.cases import batch_norm, image, outputs_and_gradients
from support.conv_cases import CASES, conv_case, tile_of
from support.oracle import relative_error
from torch import Tensor

from fused_resnet import ops, use_backend
from fused_resnet.backends import cuda
from fused_resnet.backends import reference as reference_backend
from fused_resnet.ops import BatchNorm

pytestmark = pytest.mark.usefixtures("fused", "one_thread")

# Relative root mean square error of rounding normally distributed numbers to nearest.
STORING = {torch.bfloat16: 1.66e-3, torch.float16: 2.08e-4}
# Half a unit in the last place of float32: PyTorch's CPU code sums in float64, so the reference has no other error.
HALF_UNIT = 2.0**-24
FACTOR = 2.0


def error_factor(
    op: Callable[..., Any],
    args: Sequence[Any],
    dtype: torch.dtype,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> float:
    """The largest error of the kernels over the reference's, of all outputs and gradients of ``op(*args)``."""

    def results(backend: str, kind: torch.dtype) -> tuple[list[Tensor], int]:
        with use_backend(backend), within():
            return outputs_and_gradients(op, args, kind, dtype)

    (ours, outputs), (reference, _) = results(cuda_emulated.NAME, dtype), results("reference", dtype)
    wide, _ = results("reference", torch.float64)
    # A mean's error counts against the size of what it is the mean of.
    scales = {1: wide[0].square().mean().sqrt().item()} if outputs == 3 else {}
    return largest(ours, reference, wide, STORING[dtype], scales)


def largest(
    ours: Sequence[Tensor],
    reference: Sequence[Tensor],
    wide: Sequence[Tensor],
    storing: float,
    scales: Mapping[int, float],
) -> float:
    """The largest factor of these tensors; ``scales`` are the least sizes of some, ``storing`` the least error."""
    worst = 0.0
    for i, (got, beside, want) in enumerate(zip(ours, reference, wide, strict=True)):
        errors = [max(relative_error(t, want, scales.get(i, 0.0)), storing) for t in (got, beside)]
        worst = max(worst, errors[0] / errors[1])
    return worst


def tiles(name: str) -> tuple[str, ...]:
    """Those that there are: channels that are no whole chunks of 16 bytes have the small one alone."""
    (_, channels, *_), k, *_, groups = CASES[name]
    return ("small", "large") if channels // groups % 8 == k // groups % 8 == 0 else ("small",)


def check(record_property: Callable[[str, object], None], factor: float) -> None:
    record_property("error_factor", round(factor, 3))
    assert factor <= FACTOR


@pytest.mark.parametrize("dtype", STORING, ids=str)
def test_storing_costs_this_much(dtype: torch.dtype) -> None:
    numbers = torch.randn(1 << 20, dtype=torch.float64)
    assert relative_error(numbers.to(dtype), numbers) == pytest.approx(STORING[dtype], rel=0.01)


@pytest.mark.parametrize("dtype", STORING, ids=str)
@pytest.mark.parametrize(("name", "tile"), [(name, tile) for name in CASES for tile in tiles(name)])
def test_bn_act_conv(name: str, tile: str, dtype: torch.dtype, record_property: Callable[[str, object], None]) -> None:
    x, weight, geometry = conv_case(name, dtype)
    args = (x, batch_norm(x.shape[1]), "relu", weight, *geometry)
    check(record_property, error_factor(ops.bn_act_conv, args, dtype, lambda: tile_of(tile)))


@pytest.mark.parametrize("dtype", STORING, ids=str)
@pytest.mark.parametrize(("name", "tile"), [(name, tile) for name in CASES for tile in tiles(name)])
def test_conv_bn_add_act(
    name: str, tile: str, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    x, weight, geometry = conv_case(name, dtype)
    bn = batch_norm(weight.shape[0])
    residual = torch.randn_like(ops.conv_bn_add_act(x, weight, bn, None, "relu", *geometry))

    def out(backend: str, kind: torch.dtype) -> list[Tensor]:
        vectors = bn if kind == dtype else BatchNorm(*(v.to(kind) for v in bn[:4]), bn.eps)
        with use_backend(backend), tile_of(tile):
            return [ops.conv_bn_add_act(x.to(kind), weight.to(kind), vectors, residual.to(kind), "relu", *geometry)]

    of_kernels, of_reference = out(cuda_emulated.NAME, dtype), out("reference", dtype)
    check(record_property, largest(of_kernels, of_reference, out("reference", torch.float64), STORING[dtype], {}))


@pytest.mark.parametrize("dtype", STORING, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("channels", [67, 72])
def test_channel_statistics(
    channels: int, layout: str, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    """Of an image that an op made: mean and variance are stored in float32, their share of the gradient is not."""
    y, g_y = (image(3, channels, 16, 5, dtype=dtype, layout=layout) for _ in range(2))
    statistics = [f(y) for f in (cuda.channel_statistics, reference_backend.channel_statistics)]
    wide = reference_backend.channel_statistics(y.double())
    size = {0: y.double().square().mean().sqrt().item()}
    check(record_property, largest(*statistics, wide, HALF_UNIT, size))
    g_mean, g_var = (torch.randn(channels) * y[:, 0].numel() for _ in range(2))
    args = (g_y, g_mean, g_var, y, wide[0].float())
    ours, reference = cuda.channel_statistics_backward(*args), reference_backend.statistics_backward(*args)
    want = reference_backend.statistics_backward(*(t.double() for t in args))
    check(record_property, largest([ours], [reference], [want], STORING[dtype], {}))


@pytest.mark.parametrize("dtype", STORING, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("channels", [67, 72])
@pytest.mark.parametrize("residual", ["none", "plain", "normed"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_bn_add_act(
    activation: str,
    residual: str,
    channels: int,
    layout: str,
    dtype: torch.dtype,
    record_property: Callable[[str, object], None],
) -> None:
    x, r = (image(3, channels, 7, 5, dtype=dtype, layout=layout) for _ in range(2))
    beside = (None if residual == "none" else r, batch_norm(channels) if residual == "normed" else None)
    check(record_property, error_factor(ops.bn_add_act, (x, batch_norm(channels), *beside, activation), dtype))


@pytest.mark.parametrize("dtype", STORING, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("channels", [67, 72])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_bn_act_max_pool(
    activation: str, channels: int, layout: str, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    args = (image(2, channels, 13, 11, dtype=dtype, layout=layout), batch_norm(channels), activation, 3, 2, 1)
    check(record_property, error_factor(ops.bn_act_max_pool, args, dtype))
