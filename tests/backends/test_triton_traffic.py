"""Bytes that pointwise kernels load and store, tensor by tensor: exactly the least possible, and nothing not listed.

What a tiling must read again is part of the least: a vector of channels once for each program. Partial sums are written
once and read once by each fold. The products: test_triton_conv_traffic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.cases import batch_norm, image

pytest.importorskip("triton")
from triton_strict.checks import function_of
from triton_strict.mutant import planted
from triton_strict.traffic import assert_least, norm_gradients, statistics, taps_inside, traffic, twice, vectors

from fused_resnet.backends import reference
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, Conv, MaxPool
from fused_resnet.backends.triton.configs import FOLD, POINTWISE
from fused_resnet.backends.triton.launch import ceil_div

RELU, POOL = Activation("relu"), MaxPool((3, 3), (2, 2), (1, 1))
BF16 = torch.bfloat16
N, C, K, SIZE = 2, 64, 128, 16
LARGE = POINTWISE[0]
SMALL = (256, 1)  # leaves 128 rows of sums: more than one program folds
TYPES = (torch.float32, torch.bfloat16, torch.float16)
EVERY = pytest.mark.parametrize(
    ("dtype", "tile"),
    [*((dtype, tile) for dtype in TYPES for tile in POINTWISE), (BF16, SMALL)],
    ids=lambda v: str(v).removeprefix("torch."),
)
LAYOUTS = pytest.mark.parametrize("layout", ["channels_last", "contiguous"])


def _image(dtype: torch.dtype, layout: str = "channels_last", channels: int = C) -> torch.Tensor:
    return image(N, channels, SIZE, SIZE, dtype=dtype, layout=layout)


def rows_of(tile: tuple[int, int], pixels: int = N * SIZE**2, layout: str = "channels_last") -> int:
    """Programs in a column of channels; in contiguous layout a tile holds the pixels of an image."""
    return N if layout == "contiguous" else ceil_div(pixels, tile[0] // 64)


@EVERY
@LAYOUTS
def test_bn_add_act(layout: str, dtype: torch.dtype, tile: tuple[int, int]) -> None:
    x, residual, bn = _image(dtype, layout), _image(dtype, layout), batch_norm(C)
    rows = rows_of(tile, layout=layout)
    measured = traffic(backend, lambda: backend.bn_add_act(x, bn, residual, bn, RELU), POINTWISE=(tile,))
    least = dict.fromkeys(("x_ptr", "residual_ptr", "out_ptr"), x.nbytes)
    assert_least(measured, least, vectors("bn", rows, C), vectors("residual_bn", rows, C))


@EVERY
@LAYOUTS
def test_bn_add_act_backward(layout: str, dtype: torch.dtype, tile: tuple[int, int]) -> None:
    g, x, residual = (_image(dtype, layout) for _ in range(3))
    bn, rows = batch_norm(C), rows_of(tile, layout=layout)
    args = (g, x, bn, residual, bn, RELU)
    least = dict.fromkeys(("g_out_ptr", "x_ptr", "residual_ptr", "g_x_ptr", "g_residual_ptr"), x.nbytes)
    least["sums_ptr"] = rows * 3 * C * 4
    norms = [vectors(name, rows, C) for name in ("bn", "residual_bn")] + [norm_gradients(rows, 3, C) for _ in range(2)]
    measured = traffic(backend, lambda: backend.bn_add_act_backward(*args), POINTWISE=(tile,))
    assert_least(measured, least, *norms)


@EVERY
def test_channel_statistics(dtype: torch.dtype, tile: tuple[int, int]) -> None:
    y = _image(dtype)
    measured = traffic(backend, lambda: function_of(backend, "channel_statistics")(y), POINTWISE=(tile,))
    assert_least(measured, {"y_ptr": y.nbytes}, statistics(rows_of(tile), C))


def windows_inside() -> int:
    """Pairs of a window and a pixel in it."""
    return N * taps_inside(SIZE, SIZE, 3, Conv(POOL.stride, POOL.padding, (1, 1), 1))


@EVERY
def test_bn_act_max_pool(dtype: torch.dtype, tile: tuple[int, int]) -> None:
    """Overlapping windows read a pixel again; caches serve that, within a tile."""
    x, pixels, size = _image(dtype), N * (SIZE // 2) ** 2, dtype.itemsize
    measured = traffic(backend, lambda: backend.bn_act_max_pool(x, batch_norm(C), RELU, POOL), POINTWISE=(tile,))
    least = {"x_ptr": windows_inside() * C * size, "out_ptr": pixels * C * size, "indices_ptr": pixels * C}
    assert_least(measured, least, vectors("bn", rows_of(tile, pixels), C))


@EVERY
def test_bn_act_max_pool_backward(dtype: torch.dtype, tile: tuple[int, int]) -> None:
    """An index is read for each window over a pixel, a gradient only where the index names the pixel: once each."""
    x, bn, rows = _image(dtype), batch_norm(C), rows_of(tile)
    out, indices = reference.bn_act_max_pool(x, bn, RELU, POOL)
    args = (out, indices, x, bn, RELU, POOL)
    least = {"x_ptr": x.nbytes, "g_x_ptr": x.nbytes, "g_out_ptr": out.nbytes, "indices_ptr": windows_inside() * C}
    least["sums_ptr"] = rows * 2 * C * 4
    measured = traffic(backend, lambda: backend.bn_act_max_pool_backward(*args), POINTWISE=(tile,))
    assert_least(measured, least, vectors("bn", rows, C), norm_gradients(rows, 2, C))


@EVERY
def test_output_gradient(dtype: torch.dtype, tile: tuple[int, int]) -> None:
    """The pass of its own before the library's convolutions."""
    g_y, y, vector = _image(dtype, channels=K), _image(dtype, channels=K), torch.rand(K)
    args = (g_y, vector, vector, y, vector)
    least = dict.fromkeys(("g_y_ptr", "statistics.y", "g_ptr"), y.nbytes)
    measured = traffic(backend, lambda: function_of(backend, "output_gradient")(*args), POINTWISE=(tile,))
    assert_least(measured, least, vectors("statistics", rows_of(tile), K, "mean g_mean g_var"))


# Module, a line or lines, what they become, and the test that must fail.
TWICE: dict[str, tuple[str, tuple[str, str], Callable[[], None]]] = {
    "the image in the pass back": (
        "bn_add_act",
        (
            "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
            "        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)\n"
            "        z = apply_norm(x, bn, mean, scale, shift)\n        if residual_ptr is not None:\n            r = ",
        ),
        lambda: test_bn_add_act_backward("channels_last", BF16, LARGE),
    ),
    "the residual": (
        "bn_add_act",
        (
            "c < C)\n        r = tl.load(residual_ptr + offsets, mask=mask, other=0.0)",
            "c < C)\n        tl.load(residual_ptr + offsets, mask=mask, other=0.0)\n"
            "        r = tl.load(residual_ptr + offsets, mask=mask, other=0.0)",
        ),
        lambda: test_bn_add_act("channels_last", torch.float32, LARGE),
    ),
    "a gradient that no window chose": (
        "bn_act_max_pool",
        ("mask=chosen, other=0.0", "mask=mask, other=0.0"),
        lambda: test_bn_act_max_pool_backward(torch.float16, LARGE),
    ),
    "y for its sums": (
        "channel_statistics",
        twice(
            "        y = tl.load(y_ptr + (pixel.to(tl.int64) * C)[:, None] + c[None, :], mask=mask, other=0.0)"
            ".to(tl.float32)"
        ),
        lambda: test_channel_statistics(BF16, LARGE),
    ),
    "the gradient of y": (
        "output_gradient",
        twice("    g = tl.load(g_y_ptr + offsets, mask=mask, other=0.0)"),
        lambda: test_output_gradient(BF16, LARGE),
    ),
    "sums of the statistics": (
        "channel_statistics",
        twice("    s1 = tl.load(part + step, mask=mask, other=0.0).to(tl.float64)"),
        lambda: test_channel_statistics(BF16, LARGE),
    ),
    "folded statistics": (
        "channel_statistics",
        twice("    s2 = tl.load(part + 2 * step, mask=mask, other=0.0).to(tl.float64)"),
        lambda: test_channel_statistics(BF16, SMALL),
    ),
    "sums of a norm's gradients": (
        "channel_sums",
        twice("    s = tl.sum(tl.load(part, mask=mask, other=0.0), 0)"),
        lambda: test_bn_add_act_backward("channels_last", BF16, LARGE),
    ),
    "rows to fold": (
        "channel_sums",
        (
            "        total += part.to(tl.float32)\n",
            "        total += part.to(tl.float32)\n"
            "        tl.load(rows_ptr + row * columns + column, mask=column < columns)\n",
        ),
        lambda: test_bn_add_act_backward("channels_last", BF16, SMALL),
    ),
}


@pytest.mark.parametrize("bug", TWICE)
def test_reading_more_than_the_least_fails(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, change, test = TWICE[bug]
    with planted(tmp_path, module, *change) as mutant:
        monkeypatch.setitem(globals(), "backend", mutant)
        with pytest.raises(AssertionError, match="_ptr"):
            test()


def test_one_of_the_tiles_needs_two_folds() -> None:
    assert max(rows_of(t) for t in POINTWISE) <= FOLD < rows_of(SMALL)
