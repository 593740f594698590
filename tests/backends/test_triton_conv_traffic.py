"""Bytes that the products load and store, tensor by tensor, of every shipped tile in every type: exactly the least.

What a tiling must read again is part of the least, and derived from tile and shape: a filter once for each tile of
pixels, an image once for each tile of output channels and each tap that lies inside, a vector of channels once for each
program, or step of a product. Partial sums are written once and read once by each fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import batch_norm, image

pytest.importorskip("triton")
from triton_strict.mutant import planted
from triton_strict.traffic import assert_least, norm_gradients, statistics, taps_inside, traffic, twice, vectors

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, Conv
from fused_resnet.backends.triton.configs import PRODUCT, UNALIGNED
from fused_resnet.backends.triton.conv_wgrad import PROGRAMS, STEPS
from fused_resnet.backends.triton.launch import ceil_div

RELU, BF16 = Activation("relu"), torch.bfloat16
CONVS = {
    "1x1": (1, Conv((1, 1), (0, 0), (1, 1), 1)),
    "3x3": (3, Conv((1, 1), (1, 1), (1, 1), 1)),
    "3x3, strided": (3, Conv((2, 2), (1, 1), (1, 1), 1)),
}
# Channels that take two tiles or more of every shipped one, the last not full; pixels likewise.
SHAPES = {
    "aligned": (3, 80, 144, 9, 7),  # N, C, K, H, W
    "unaligned": (3, 67, 71, 9, 7),
    "shares": (2, 64, 128, 16, 16),  # as many pixels as two shares of wgrad need
}
TYPES = (torch.float32, BF16, torch.float16)
# Every shipped tile; without strides the first alone, for the interpreter is slow.
CASES = [
    (name, shape, dtype, tile)
    for dtype in TYPES
    for shape, tiles in (("aligned", PRODUCT[dtype.itemsize]), ("unaligned", UNALIGNED[dtype.itemsize]))
    for name in CONVS
    for tile in (tiles if name != "3x3" else PRODUCT[dtype.itemsize][:1] if shape == "aligned" else ())
]
SHARED = [("1x1", "shares", dtype, PRODUCT[dtype.itemsize][0]) for dtype in TYPES]


def every(*cases: tuple[Any, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "shape", "dtype", "tile"), cases, ids=lambda v: str(v).removeprefix("torch.")
    )


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


class Case:
    """A convolution, and how often its tiles read what."""

    def __init__(self, name: str, shape: str, dtype: torch.dtype, tile: tuple[int, ...]) -> None:
        self.kernel, self.conv = CONVS[name]
        self.tile, self.dtype = tile, dtype
        self.BM, self.BN, self.BK = tile[:3]
        self.N, self.C, self.K, self.H, self.W = SHAPES[shape]
        self.OH, self.OW = self.conv.output_size((self.H, self.W), (self.kernel, self.kernel))
        self.x = image(self.N, self.C, self.H, self.W, dtype=dtype)
        weight = torch.randn(self.K, self.C, self.kernel, self.kernel).to(dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.pixels, self.taps = self.N * self.OH * self.OW, self.kernel**2
        self.y_bytes = self.pixels * self.K * dtype.itemsize
        self.inside = self.N * taps_inside(self.H, self.W, self.kernel, self.conv)

    def traffic(self, run: Callable[[], object]) -> Counter[str]:
        tiles = {self.dtype.itemsize: (self.tile,)}
        return traffic(backend, run, PRODUCT=tiles, UNALIGNED=tiles)

    def forward(self) -> tuple[int, int, dict[str, int]]:
        """Tiles of pixels and of output channels, and what both forward kernels read."""
        tiles, columns = ceil_div(self.pixels, self.BM), ceil_div(self.K, self.BN)
        x_bytes = self.inside * self.C * self.dtype.itemsize
        return tiles, columns, {"x_ptr": x_bytes * columns, "weight_ptr": self.weight.nbytes * tiles}

    def backward(self, *mask: bool) -> Counter[str]:
        x, bn, weight, conv = self.x, batch_norm(self.C), self.weight, self.conv
        y, mean, _ = reference.bn_act_conv(x, bn, RELU, weight, None, conv, True)
        g_mean, g_y = torch.randn_like(mean), image(self.N, self.K, self.OH, self.OW, dtype=self.dtype)
        args = (g_y, g_mean, g_mean, x, bn, RELU, weight, y, mean, conv, mask)
        return self.traffic(lambda: backend.bn_act_conv_backward(*args))


@every(*CASES)
def test_bn_act_conv(name: str, shape: str, dtype: torch.dtype, tile: tuple[int, ...]) -> None:
    """The vectors of the norm once for each step of a tap, whose channels they are."""
    case = Case(name, shape, dtype, tile)
    args = (case.x, batch_norm(case.C), RELU, case.weight, None, case.conv, True)
    measured = case.traffic(lambda: backend.bn_act_conv(*args))
    tiles, columns, least = case.forward()
    norm = vectors("bn", tiles * columns * case.taps, case.C)
    assert_least(measured, least, {"y_ptr": case.y_bytes}, norm, statistics(tiles, case.K))


@every(*CASES)
def test_conv_bn_add_act(name: str, shape: str, dtype: torch.dtype, tile: tuple[int, ...]) -> None:
    case = Case(name, shape, dtype, tile)
    residual = image(case.N, case.K, case.OH, case.OW, dtype=dtype)
    args = (case.x, case.weight, None, batch_norm(case.K), residual, RELU, case.conv)
    measured = case.traffic(lambda: backend.conv_bn_add_act(*args))
    tiles, _, least = case.forward()
    least |= dict.fromkeys(("residual_ptr", "out_ptr"), case.y_bytes)
    assert_least(measured, least, vectors("bn", tiles, case.K))


@every(*CASES)
def test_dgrad(name: str, shape: str, dtype: torch.dtype, tile: tuple[int, ...]) -> None:
    """g_y and y once for each tap inside; of a strided filter a tile reads its phase's taps: no zero is multiplied."""
    case = Case(name, shape, dtype, tile)
    stride, columns = case.conv.stride[0], ceil_div(case.C, case.BN)
    # Each tap reaches one phase, so the tiles of one place share a filter out. The first phase is the largest.
    tiles = ceil_div(case.N * ceil_div(case.H, stride) * ceil_div(case.W, stride), case.BM)
    rows = tiles * stride**2
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.inside * case.K * dtype.itemsize * columns)
    least |= {"weight_ptr": case.weight.nbytes * tiles, "x_ptr": case.x.nbytes, "g_x_ptr": case.x.nbytes}
    least |= vectors("statistics", tiles * case.taps * columns, case.K, "mean g_mean g_var")
    least["sums_ptr"] = rows * 2 * case.C * 4
    norm = vectors("bn", rows, case.C), norm_gradients(rows, 2, case.C)
    assert_least(case.backward(True, False, False), least, *norm)


@every(*CASES, *SHARED)
def test_wgrad(name: str, shape: str, dtype: torch.dtype, tile: tuple[int, ...]) -> None:
    """The gradient once for each tap, the image for each tap inside; shares in float32 written, read, and the sum."""
    case = Case(name, shape, dtype, tile)
    rows, columns = ceil_div(case.K, case.BM), ceil_div(case.C, case.BN)
    total = ceil_div(case.pixels, case.BK)
    programs = rows * columns * case.taps
    steps = ceil_div(total, max(1, min(ceil_div(PROGRAMS, programs), total // STEPS)))
    shares = ceil_div(total, steps)
    assert (shares > 1) == (shape == "shares")
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.y_bytes * case.taps * columns)
    least["x_ptr"] = case.inside * case.C * dtype.itemsize * rows
    least["out_ptr"] = case.weight.nbytes
    least |= vectors("statistics", shares * steps * case.taps * columns, case.K, "mean g_mean g_var")
    folded = dict.fromkeys(("out_ptr", "rows_ptr"), shares * 4 * case.weight.numel() if shares > 1 else 0)
    norm = vectors("bn", shares * case.taps * rows, case.C)
    assert_least(case.backward(False, True, False), least, norm, folded)


# Module, a line or lines, what they become, and the test that must fail.
TWICE: dict[str, tuple[str, tuple[str, str], Callable[[], None]]] = {
    "the image in a convolution": (
        "conv_forward",
        twice("        u = tl.load(x_row[:, None] + c[None, :], mask=mask, other=0.0)"),
        lambda: test_bn_act_conv("1x1", "aligned", BF16, PRODUCT[2][0]),
    ),
    "the image in dgrad": (
        "conv_dgrad",
        twice("        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)"),
        lambda: test_dgrad("1x1", "aligned", torch.float32, PRODUCT[4][-1]),
    ),
    "the image in wgrad": (
        "conv_wgrad",
        twice(
            "        u = tl.load(x_ptr + (pixel * (size.C * size.groups))[:, None] + all_c[None, :], "
            "mask=mask, other=0.0)"
        ),
        lambda: test_wgrad("1x1", "unaligned", torch.float16, UNALIGNED[2][0]),
    ),
}


@pytest.mark.parametrize("bug", TWICE)
def test_reading_more_than_the_least_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, change, test = TWICE[bug]
    with planted(tmp_path, module, *change) as mutant:
        monkeypatch.setitem(globals(), "backend", mutant)
        with pytest.raises(AssertionError, match="_ptr"):
            test()
