"""Bytes that kernels load and store, tensor by tensor, against the least possible: within 5 %.

What a tiling must read again is part of the least: a filter once for each tile of pixels, an image once for each tile
of output channels and each tap that lies inside. Vectors of channels and partial sums are not images: they are bounded
apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.cases import batch_norm, image

pytest.importorskip("triton")
from triton_strict import record_traffic
from triton_strict.mutant import planted

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, Conv, MaxPool
from fused_resnet.backends.triton.channel_statistics import channel_statistics
from fused_resnet.backends.triton.configs import PRODUCT
from fused_resnet.backends.triton.output_gradient import output_gradient

RELU, POOL = Activation("relu"), MaxPool((3, 3), (2, 2), (1, 1))
BF16 = torch.bfloat16
N, C, K, SIZE = 2, 64, 128, 16
TILE = dict(zip(("BM", "BN", "BK"), PRODUCT[2][0], strict=False))


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


def traffic(run: Callable[[], object]) -> Counter[str]:
    """Bytes by argument, loaded and stored together, over all launches of ``run``."""
    total: Counter[str] = Counter()
    with record_traffic() as launches:
        run()
    for launch in launches:
        total.update(launch.loaded)
        total.update(launch.stored)
    return total


def assert_least(measured: Counter[str], least: dict[str, int]) -> None:
    for name, bytes_needed in least.items():
        assert abs(measured[name] - bytes_needed) <= 0.05 * bytes_needed, (name, measured[name], bytes_needed)
    small = sum(v for k, v in measured.items() if k not in least)
    assert small <= 0.25 * sum(least.values()), dict(measured)  # with 512 pixels; it falls as their number grows


def taps_inside(size: int, kernel: int, conv: Conv) -> int:
    """Pairs of an output pixel and a tap that lies inside the image."""
    return int(F.unfold(torch.ones(1, 1, size, size), kernel, conv.dilation, conv.padding, conv.stride).sum())


def test_bn_add_act() -> None:
    x, bn = image(N, C, SIZE, SIZE, dtype=BF16), batch_norm(C)
    residual = image(N, C, SIZE, SIZE, dtype=BF16)
    measured = traffic(lambda: backend.bn_add_act(x, bn, residual, bn, RELU))
    assert_least(measured, dict.fromkeys(("x_ptr", "residual_ptr", "out_ptr"), x.nbytes))


def test_bn_add_act_backward() -> None:
    x, residual, g = (image(N, C, SIZE, SIZE, dtype=BF16) for _ in range(3))
    measured = traffic(lambda: backend.bn_add_act_backward(g, x, batch_norm(C), residual, batch_norm(C), RELU))
    names = ("g_out_ptr", "x_ptr", "residual_ptr", "g_x_ptr", "g_residual_ptr")
    assert_least(measured, dict.fromkeys(names, x.nbytes))


def test_channel_statistics() -> None:
    y = image(N, C, SIZE, SIZE, dtype=BF16)
    assert_least(traffic(lambda: channel_statistics(y)), {"y_ptr": y.nbytes})


def test_bn_act_max_pool() -> None:
    """Overlapping windows read a pixel again; caches serve that, within a tile."""
    x = image(N, C, SIZE, SIZE, dtype=BF16)
    inside = taps_inside(SIZE, 3, Conv(POOL.stride, POOL.padding, (1, 1), 1))
    measured = traffic(lambda: backend.bn_act_max_pool(x, batch_norm(C), RELU, POOL))
    pooled = N * C * (SIZE // 2) ** 2
    assert_least(measured, {"x_ptr": N * C * inside * 2, "out_ptr": 2 * pooled, "indices_ptr": pooled})


def test_bn_act_max_pool_backward() -> None:
    """An index is read for each window over a pixel, a gradient only where the index names the pixel: once each."""
    x, bn = image(N, C, SIZE, SIZE, dtype=BF16), batch_norm(C)
    out, indices = reference.bn_act_max_pool(x, bn, RELU, POOL)
    measured = traffic(lambda: backend.bn_act_max_pool_backward(out, indices, x, bn, RELU, POOL))
    inside = taps_inside(SIZE, 3, Conv(POOL.stride, POOL.padding, (1, 1), 1))
    least = {"x_ptr": x.nbytes, "g_x_ptr": x.nbytes, "g_out_ptr": out.nbytes, "indices_ptr": N * C * inside}
    assert_least(measured, least)


CONVS = {
    "1x1": (1, Conv((1, 1), (0, 0), (1, 1), 1)),
    "3x3": (3, Conv((1, 1), (1, 1), (1, 1), 1)),
    "3x3, strided": (3, Conv((2, 2), (1, 1), (1, 1), 1)),
}


class Case:
    """A convolution of a square image, and how often its tiles read what."""

    def __init__(self, name: str) -> None:
        self.kernel, self.conv = CONVS[name]
        self.stride, self.out = self.conv.stride[0], SIZE // self.conv.stride[0]
        self.x = image(N, C, SIZE, SIZE, dtype=BF16)
        weight = torch.randn(K, C, self.kernel, self.kernel).to(BF16)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.y_bytes = N * K * self.out**2 * 2
        self.inside = N * taps_inside(SIZE, self.kernel, self.conv)
        # One filter for each tile of y; and for each tile of x of every phase, which share the filter out.
        self.filters = self.weight.nbytes * (N * self.out**2 // TILE["BM"])

    def least_forward(self) -> dict[str, int]:
        return {"x_ptr": self.inside * C * 2 * (K // TILE["BN"]), "weight_ptr": self.filters}

    def backward(self, *mask: bool) -> Counter[str]:
        x, bn, weight, conv = self.x, batch_norm(C), self.weight, self.conv
        y, mean, _ = reference.bn_act_conv(x, bn, RELU, weight, None, conv, True)
        g_mean, g_y = torch.randn_like(mean), image(N, K, self.out, self.out, dtype=BF16)
        args = (g_y, g_mean, g_mean, x, bn, RELU, weight, y, mean, conv, mask)
        return traffic(lambda: backend.bn_act_conv_backward(*args))


@pytest.mark.parametrize("name", CONVS)
def test_bn_act_conv(name: str) -> None:
    case = Case(name)
    measured = traffic(lambda: backend.bn_act_conv(case.x, batch_norm(C), RELU, case.weight, None, case.conv, True))
    assert_least(measured, case.least_forward() | {"y_ptr": case.y_bytes})


@pytest.mark.parametrize("name", CONVS)
def test_conv_bn_add_act(name: str) -> None:
    case = Case(name)
    residual = image(N, K, case.out, case.out, dtype=BF16)
    args = (case.x, case.weight, None, batch_norm(K), residual, RELU, case.conv)
    measured = traffic(lambda: backend.conv_bn_add_act(*args))
    assert_least(measured, case.least_forward() | dict.fromkeys(("residual_ptr", "out_ptr"), case.y_bytes))


@pytest.mark.parametrize("name", CONVS)
def test_dgrad(name: str) -> None:
    """g_y and y once for each tap inside; of a strided filter a tile reads its phase's taps: no zero is multiplied."""
    case = Case(name)
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.inside * K * 2) | {"weight_ptr": case.filters}
    least |= dict.fromkeys(("x_ptr", "g_x_ptr"), case.x.nbytes)
    assert_least(case.backward(True, False, False), least)


@pytest.mark.parametrize("name", ["1x1", "3x3, strided"])
def test_wgrad(name: str) -> None:
    """The gradient once for each tap, the image for each tap inside; shares in float32 written, read, and the sum."""
    case = Case(name)
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.y_bytes * case.kernel**2)
    least |= {"x_ptr": case.inside * C * 2, "out_ptr": case.weight.nbytes}
    if case.stride == 1:  # two shares
        shares = 2 * 4 * case.weight.numel()
        least |= {"out_ptr": shares + case.weight.nbytes, "rows_ptr": shares}
    assert_least(case.backward(False, True, False), least)


def test_output_gradient() -> None:
    """The pass of its own before the library's convolutions."""
    g_y, y, vector = *(image(N, K, SIZE, SIZE, dtype=BF16) for _ in range(2)), torch.rand(K)
    measured = traffic(lambda: output_gradient(g_y, vector, vector, y, vector))
    assert_least(measured, dict.fromkeys(("g_y_ptr", "statistics.y", "g_ptr"), y.nbytes))


TWICE = {
    "the image in the pass back": (
        "bn_add_act",
        "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
        "        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)\n"
        "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
    ),
    "a gradient that no window chose": ("bn_act_max_pool", "mask=chosen, other=0.0", "mask=mask, other=0.0"),
}


@pytest.mark.parametrize("bug", TWICE)
def test_reading_more_than_the_least_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, before, after = TWICE[bug]
    test = test_bn_add_act_backward if module == "bn_add_act" else test_bn_act_max_pool_backward
    with planted(tmp_path, module, before, after) as mutant:
        monkeypatch.setitem(globals(), "backend", mutant)
        with pytest.raises(AssertionError, match="_ptr"):
            test()
