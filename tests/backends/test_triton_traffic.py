"""Bytes that kernels load and store, tensor by tensor: exactly the least possible, and nothing that is not listed.

What a tiling must read again is part of the least: a filter once for each tile of pixels, an image once for each tile
of output channels and each tap that lies inside, a vector of channels once for each program, or step of a product.
Partial sums are written once and read once by each fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.cases import batch_norm, image

pytest.importorskip("triton")
from triton_strict import record_traffic
from triton_strict.checks import function_of
from triton_strict.mutant import planted

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, Conv, MaxPool
from fused_resnet.backends.triton.configs import FOLD, POINTWISE, PRODUCT
from fused_resnet.backends.triton.launch import ceil_div

RELU, POOL = Activation("relu"), MaxPool((3, 3), (2, 2), (1, 1))
BF16 = torch.bfloat16
N, C, K, SIZE = 2, 64, 128, 16
TILE = dict(zip(("BM", "BN", "BK"), PRODUCT[2][0], strict=False))
# A tile of 64 pixels x 64 channels leaves 8 rows of sums, one of 4 x 64 leaves 128: more than one program folds.
ROWS = {POINTWISE[0]: 8, (256, 1): 128}


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


def traffic(run: Callable[[], object], tile: tuple[int, int] = POINTWISE[0]) -> Counter[str]:
    """Bytes by argument, loaded and stored together, over all launches of ``run``."""
    total: Counter[str] = Counter()
    with record_traffic() as launches, mock.patch.object(backend.configs, "POINTWISE", (tile,)):
        run()
    for launch in launches:
        total.update(launch.loaded)
        total.update(launch.stored)
    return total


def assert_least(measured: Counter[str], *least: dict[str, int]) -> None:
    expected: Counter[str] = Counter()
    for part in least:
        expected.update(part)
    assert measured == expected


def vectors(name: str, times: int, channels: int, fields: str = "mean var weight bias") -> dict[str, int]:
    """The float32 vectors of a norm, read so many times."""
    return {f"{name}.{field}": times * channels * 4 for field in fields.split()}


def norm_gradients(rows: int, values: int) -> Counter[str]:
    """The second stage of the sums of a norm: folds of all values, s and t of the last, four gradients."""
    total: Counter[str] = Counter(vectors("bn", 1, C, "var weight"))
    while rows > FOLD:
        total["rows_ptr"] += rows * values * C * 4
        rows = ceil_div(rows, FOLD)
        total["out_ptr"] += rows * values * C * 4
    return total + Counter(rows_ptr=rows * 2 * C * 4, out_ptr=4 * C * 4)


def statistics(parts: int, channels: int) -> Counter[str]:
    """Three numbers of each part written, and read by the fold, which leaves as many of each group, or the result."""
    part = 3 * channels * 4
    total = Counter(parts_ptr=2 * parts * part, mean_ptr=channels * 4, var_ptr=channels * 4)
    while parts > FOLD:
        parts = ceil_div(parts, FOLD)
        total += Counter(folded_ptr=parts * part, parts_ptr=parts * part)
    return total


def taps_inside(size: int, kernel: int, conv: Conv) -> int:
    """Pairs of an output pixel and a tap that lies inside the image."""
    return int(F.unfold(torch.ones(1, 1, size, size), kernel, conv.dilation, conv.padding, conv.stride).sum())


def _image(channels: int = C, size: int = SIZE, layout: str = "channels_last") -> torch.Tensor:
    return image(N, channels, size, size, dtype=BF16, layout=layout)


@pytest.mark.parametrize(("layout", "rows"), [("channels_last", 8), ("contiguous", 2)])
def test_bn_add_act(layout: str, rows: int) -> None:
    x, residual, bn = _image(layout=layout), _image(layout=layout), batch_norm(C)
    measured = traffic(lambda: backend.bn_add_act(x, bn, residual, bn, RELU))
    least = dict.fromkeys(("x_ptr", "residual_ptr", "out_ptr"), x.nbytes)
    assert_least(measured, least, vectors("bn", rows, C), vectors("residual_bn", rows, C))


@pytest.mark.parametrize(("layout", "tile"), [*(("channels_last", t) for t in ROWS), ("contiguous", POINTWISE[0])])
def test_bn_add_act_backward(layout: str, tile: tuple[int, int]) -> None:
    g, x, residual = (_image(layout=layout) for _ in range(3))
    bn, rows = batch_norm(C), ROWS[tile] if layout == "channels_last" else N
    measured = traffic(lambda: backend.bn_add_act_backward(g, x, bn, residual, bn, RELU), tile)
    least = dict.fromkeys(("g_out_ptr", "x_ptr", "residual_ptr", "g_x_ptr", "g_residual_ptr"), x.nbytes)
    least["sums_ptr"] = rows * 3 * C * 4
    norms = [vectors(name, rows, C) for name in ("bn", "residual_bn")] + [norm_gradients(rows, 3) for _ in range(2)]
    assert_least(measured, least, *norms)


@pytest.mark.parametrize("tile", ROWS, ids=str)
def test_channel_statistics(tile: tuple[int, int]) -> None:
    y = _image()
    measured = traffic(lambda: function_of(backend, "channel_statistics")(y), tile)
    assert_least(measured, {"y_ptr": y.nbytes}, statistics(ROWS[tile], C))


def test_bn_act_max_pool() -> None:
    """Overlapping windows read a pixel again; caches serve that, within a tile."""
    x = _image()
    inside = taps_inside(SIZE, 3, Conv(POOL.stride, POOL.padding, (1, 1), 1))
    measured = traffic(lambda: backend.bn_act_max_pool(x, batch_norm(C), RELU, POOL))
    pooled = N * C * (SIZE // 2) ** 2
    least = {"x_ptr": N * C * inside * 2, "out_ptr": 2 * pooled, "indices_ptr": pooled}
    assert_least(measured, least, vectors("bn", 2, C))


def test_bn_act_max_pool_backward() -> None:
    """An index is read for each window over a pixel, a gradient only where the index names the pixel: once each."""
    x, bn = _image(), batch_norm(C)
    out, indices = reference.bn_act_max_pool(x, bn, RELU, POOL)
    measured = traffic(lambda: backend.bn_act_max_pool_backward(out, indices, x, bn, RELU, POOL))
    inside = taps_inside(SIZE, 3, Conv(POOL.stride, POOL.padding, (1, 1), 1))
    least = {"x_ptr": x.nbytes, "g_x_ptr": x.nbytes, "g_out_ptr": out.nbytes, "indices_ptr": N * C * inside}
    assert_least(measured, least, {"sums_ptr": 8 * 2 * C * 4}, vectors("bn", 8, C), norm_gradients(8, 2))


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
        self.x = _image()
        weight = torch.randn(K, C, self.kernel, self.kernel).to(BF16)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.pixels = N * self.out**2
        self.y_bytes = self.pixels * K * 2
        self.inside = N * taps_inside(SIZE, self.kernel, self.conv)
        # One filter for each tile of y; and for each tile of x of every phase, which share the filter out.
        self.tiles = self.pixels // TILE["BM"]
        self.filters = self.weight.nbytes * self.tiles

    def least_forward(self) -> dict[str, int]:
        return {"x_ptr": self.inside * C * 2 * (K // TILE["BN"]), "weight_ptr": self.filters}

    def backward(self, *mask: bool) -> Counter[str]:
        x, bn, weight, conv = self.x, batch_norm(C), self.weight, self.conv
        y, mean, _ = reference.bn_act_conv(x, bn, RELU, weight, None, conv, True)
        g_mean, g_y = torch.randn_like(mean), _image(K, self.out)
        args = (g_y, g_mean, g_mean, x, bn, RELU, weight, y, mean, conv, mask)
        return traffic(lambda: backend.bn_act_conv_backward(*args))


@pytest.mark.parametrize("name", CONVS)
def test_bn_act_conv(name: str) -> None:
    """The vectors of the norm once for each step of a tap, whose channels they are."""
    case = Case(name)
    measured = traffic(lambda: backend.bn_act_conv(case.x, batch_norm(C), RELU, case.weight, None, case.conv, True))
    steps = case.tiles * (K // TILE["BN"]) * case.kernel**2
    least = case.least_forward() | {"y_ptr": case.y_bytes}
    assert_least(measured, least, vectors("bn", steps, C), statistics(case.tiles, K))


@pytest.mark.parametrize("name", CONVS)
def test_conv_bn_add_act(name: str) -> None:
    case = Case(name)
    args = (case.x, case.weight, None, batch_norm(K), _image(K, case.out), RELU, case.conv)
    measured = traffic(lambda: backend.conv_bn_add_act(*args))
    least = case.least_forward() | dict.fromkeys(("residual_ptr", "out_ptr"), case.y_bytes)
    assert_least(measured, least, vectors("bn", case.tiles, K))


@pytest.mark.parametrize("name", CONVS)
def test_dgrad(name: str) -> None:
    """g_y and y once for each tap inside; of a strided filter a tile reads its phase's taps: no zero is multiplied."""
    case = Case(name)
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.inside * K * 2) | {"weight_ptr": case.filters}
    least |= dict.fromkeys(("x_ptr", "g_x_ptr"), case.x.nbytes)
    least |= vectors("statistics", case.tiles * case.kernel**2, K, "mean g_mean g_var")
    rows = N * SIZE**2 // TILE["BM"]
    least["sums_ptr"] = rows * 2 * C * 4
    assert_least(case.backward(True, False, False), least, vectors("bn", rows, C), norm_gradients(rows, 2))


@pytest.mark.parametrize("name", CONVS)
def test_wgrad(name: str) -> None:
    """The gradient once for each tap, the image for each tap inside; shares in float32 written, read, and the sum."""
    case = Case(name)
    taps, shares = case.kernel**2, 2 if case.stride == 1 else 1
    least = dict.fromkeys(("g_y_ptr", "statistics.y"), case.y_bytes * taps)
    least |= {"x_ptr": case.inside * C * 2, "out_ptr": case.weight.nbytes}
    least |= vectors("statistics", case.pixels // TILE["BK"] * taps, K, "mean g_mean g_var")
    if shares > 1:
        folded = dict.fromkeys(("out_ptr", "rows_ptr"), shares * 4 * case.weight.numel())
        assert_least(case.backward(False, True, False), least, vectors("bn", shares * taps, C), folded)
    else:
        assert_least(case.backward(False, True, False), least, vectors("bn", taps, C))


def test_output_gradient() -> None:
    """The pass of its own before the library's convolutions."""
    g_y, y, vector = _image(K), _image(K), torch.rand(K)
    measured = traffic(lambda: function_of(backend, "output_gradient")(g_y, vector, vector, y, vector))
    least = dict.fromkeys(("g_y_ptr", "statistics.y", "g_ptr"), y.nbytes)
    assert_least(measured, least, vectors("statistics", 8, K, "mean g_mean g_var"))


def _twice(line: str) -> tuple[str, str]:
    """A line of a kernel, and the same twice."""
    return line + "\n", f"{line}\n{line}\n"


_LARGE, _SMALL = ROWS
# Module, a line or lines, what they become, and the test that must fail.
TWICE: dict[str, tuple[str, tuple[str, str], Callable[[], None]]] = {
    "the image in the pass back": (
        "bn_add_act",
        (
            "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
            "        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)\n"
            "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
        ),
        lambda: test_bn_add_act_backward("channels_last", _LARGE),
    ),
    "the residual": (
        "bn_add_act",
        (
            "c < C)\n        r = tl.load(residual_ptr + offsets, mask=mask, other=0.0)",
            "c < C)\n        tl.load(residual_ptr + offsets, mask=mask, other=0.0)\n"
            "        r = tl.load(residual_ptr + offsets, mask=mask, other=0.0)",
        ),
        lambda: test_bn_add_act("channels_last", 8),
    ),
    "a gradient that no window chose": (
        "bn_act_max_pool",
        ("mask=chosen, other=0.0", "mask=mask, other=0.0"),
        lambda: test_bn_act_max_pool_backward(),
    ),
    "y for its sums": (
        "channel_statistics",
        _twice(
            "        y = tl.load(y_ptr + (pixel.to(tl.int64) * C)[:, None] + c[None, :], mask=mask, other=0.0)"
            ".to(tl.float32)"
        ),
        lambda: test_channel_statistics(_LARGE),
    ),
    "the image in a convolution": (
        "conv_forward",
        _twice("        u = tl.load(x_row[:, None] + c[None, :], mask=mask, other=0.0)"),
        lambda: test_bn_act_conv("1x1"),
    ),
    "the image in dgrad": (
        "conv_dgrad",
        _twice("        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)"),
        lambda: test_dgrad("1x1"),
    ),
    "the image in wgrad": (
        "conv_wgrad",
        _twice(
            "        u = tl.load(x_ptr + (pixel * (size.C * size.groups))[:, None] + all_c[None, :], "
            "mask=mask, other=0.0)"
        ),
        lambda: test_wgrad("3x3"),
    ),
    "the gradient of y": (
        "output_gradient",
        _twice("    g = tl.load(g_y_ptr + offsets, mask=mask, other=0.0)"),
        lambda: test_output_gradient(),
    ),
    "sums of the statistics": (
        "channel_statistics",
        _twice("    s1 = tl.load(part + step, mask=mask, other=0.0).to(tl.float64)"),
        lambda: test_channel_statistics(_LARGE),
    ),
    "folded statistics": (
        "channel_statistics",
        _twice("    s2 = tl.load(part + 2 * step, mask=mask, other=0.0).to(tl.float64)"),
        lambda: test_channel_statistics(_SMALL),
    ),
    "sums of a norm's gradients": (
        "channel_sums",
        _twice("    s = tl.sum(tl.load(part, mask=mask, other=0.0), 0)"),
        lambda: test_bn_add_act_backward("channels_last", _LARGE),
    ),
    "rows to fold": (
        "channel_sums",
        (
            "        total += part.to(tl.float32)\n",
            "        total += part.to(tl.float32)\n"
            "        tl.load(rows_ptr + row * columns + column, mask=column < columns)\n",
        ),
        lambda: test_bn_add_act_backward("channels_last", _SMALL),
    ),
}


@pytest.mark.parametrize("bug", TWICE)
def test_reading_more_than_the_least_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, change, test = TWICE[bug]
    with planted(tmp_path, module, *change) as mutant:
        monkeypatch.setitem(globals(), "backend", mutant)
        with pytest.raises(AssertionError, match="_ptr"):
            test()
