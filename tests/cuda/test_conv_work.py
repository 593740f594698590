"""What the fused convolution multiplies and copies, counted while it runs, against what a tiling cannot do without.

Each tile of 64 x 64 takes, for every tap that reaches its pixels, the channels of the sum in stages of 64 bytes.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from cuda_on_cpu import build, cuda_emulated
from cuda_on_cpu.planted_bugs import PlantedBug
from cuda_on_cpu.work import Work, counted
from support.cases import batch_norm, image

from fused_resnet.backends import cuda
from fused_resnet.backends.arguments import Activation, Conv
from fused_resnet.backends.choices import force
from fused_resnet.backends.cuda import native

pytestmark = pytest.mark.usefixtures("fused", "one_thread")

TILE, STAGE_BYTES = 64, 64
# (N, C, H, W), K, kernel, convolution. All channels are whole tiles and stages: what is zero is a pixel.
CASES = {
    "1x1": ((2, 64, 8, 8), 64, 1, Conv((1, 1), (0, 0), (1, 1), 1)),
    "1x1-stride2": ((2, 128, 16, 16), 32, 1, Conv((2, 2), (0, 0), (1, 1), 1)),
    "2x2-stride2": ((1, 64, 16, 16), 64, 2, Conv((2, 2), (0, 0), (1, 1), 1)),
    "3x3": ((1, 64, 9, 7), 64, 3, Conv((1, 1), (1, 1), (1, 1), 1)),
    "3x3-stride2": ((1, 64, 16, 16), 64, 3, Conv((2, 2), (1, 1), (1, 1), 1)),
    "phases-of-two-sizes": ((1, 64, 17, 17), 32, 3, Conv((2, 2), (1, 1), (1, 1), 1)),
    "stride-beyond-kernel": ((1, 64, 12, 9), 32, 2, Conv((3, 4), (1, 0), (1, 1), 1)),
    "dilated": ((1, 64, 11, 8), 32, 3, Conv((3, 2), (1, 2), (2, 2), 1)),
    "grouped": ((1, 128, 16, 8), 64, 3, Conv((2, 1), (1, 1), (1, 1), 2)),
}


class Phase(NamedTuple):
    """Along one axis: pixels of x with the same taps, those taps, and pairs of the two that lie inside the output."""

    pixels: int
    taps: int
    inside: int


def phases(axis: int, size: int, out: int, kernel: int, conv: Conv) -> list[Phase]:
    """By trying every tap at every pixel."""
    stride, padding, dilation = conv.stride[axis], conv.padding[axis], conv.dilation[axis]
    found = []
    for phase in range(min(stride, size)):
        pixels = range(phase, size, stride)
        taps = [r for r in range(kernel) if (phase + padding - r * dilation) % stride == 0]
        inside = sum(0 <= (h + padding - r * dilation) // stride < out for h, r in product(pixels, taps))
        found.append(Phase(len(pixels), len(taps), inside))
    return found


def least_dgrad(name: str, dtype: torch.dtype) -> Work:
    """The work of dgrad with the statistics' share of the gradient: g_y and y are read."""
    (n, channels, height, width), k, kernel, conv = CASES[name]
    out_height, out_width = conv.output_size((height, width), (kernel, kernel))
    along_h = phases(0, height, out_height, kernel, conv)
    along_w = phases(1, width, out_width, kernel, conv)
    columns = channels // conv.groups // TILE * conv.groups
    group_k_bytes = k // conv.groups * dtype.itemsize
    tiles = sum(-(-n * h.pixels * w.pixels // TILE) * h.taps * w.taps for h, w in product(along_h, along_w)) * columns
    inside = sum(h.inside * w.inside for h, w in product(along_h, along_w)) * n * columns
    products = tiles * (TILE // 16) * (TILE // 8) * (group_k_bytes // 32)
    g_bytes = 2 * inside * group_k_bytes
    filter_bytes = tiles * group_k_bytes * TILE
    return Work(products, g_bytes + filter_bytes, 2 * tiles * TILE * group_k_bytes - g_bytes)


def work_of_dgrad(name: str, dtype: torch.dtype) -> Work:
    shape, k, kernel, conv = CASES[name]
    x, weight = image(*shape, dtype=dtype), torch.randn(k, shape[1] // conv.groups, kernel, kernel).to(dtype)
    g_y = image(shape[0], k, *conv.output_size(shape[2:], (kernel, kernel)), dtype=dtype)
    vector = torch.rand(k)
    args = (g_y, vector, vector, x, batch_norm(shape[1]), Activation("relu"), weight, g_y, vector, conv)
    with force({"bn_act_conv_backward.tile": "small"}), counted(native.kernels(x)) as work:
        cuda.bn_act_conv_backward(*args, (True, False, False))
    return work


def assert_least(work: Work, least: Work) -> None:
    for name, _ in Work._fields_:
        assert getattr(work, name) == getattr(least, name), name


@pytest.mark.parametrize("name", CASES)
def test_dgrad(name: str) -> None:
    """No zero of the stride is multiplied: only padding, and the tail of a phase's last tile, are copied as zeros."""
    assert_least(work_of_dgrad(name, torch.bfloat16), least_dgrad(name, torch.bfloat16))


@pytest.mark.parametrize("name", ["1x1-stride2", "2x2-stride2"])
def test_dgrad_without_padding_multiplies_no_zero(name: str) -> None:
    assert work_of_dgrad(name, torch.float16).bytes_of_zeros == 0


def test_stride_2_takes_a_quarter_of_the_products_of_stride_1() -> None:
    """At equal sizes of x: a 3x3 filter's nine taps are shared out among four phases."""
    shape, k, kernel, _ = CASES["3x3-stride2"]
    least = TILE // 16 * (TILE // 8) * (k * 2 // 32) * (shape[2] * shape[3] // TILE) * kernel**2
    assert work_of_dgrad("3x3-stride2", torch.bfloat16).products == least // 4


@pytest.mark.parametrize("name", ["2x2-stride2", "phases-of-two-sizes"])
def test_dgrad_by_multiply_adds(name: str) -> None:
    """Which no instruction counts; what they multiply was copied."""
    least = least_dgrad(name, torch.float32)
    assert_least(work_of_dgrad(name, torch.float32), Work(0, least.bytes_copied, least.bytes_of_zeros))


def test_a_tile_beyond_its_phase_that_multiplies_zeros_is_found() -> None:
    """No result tells: the tile stores nothing."""
    cuda_emulated.ensure()
    before, after = "first_row < rows ? h.taps * w.taps : 0", "h.taps * w.taps"
    bug = PlantedBug("conv_dgrad.cu", "conv_phases.h", before, after, "conv_dgrad", "plain", "")
    native.serve("cpu", build.load(build.build_planted(bug, cuda_emulated.FOLDER)))
    try:
        with pytest.raises(AssertionError, match="products"):
            assert_least(
                work_of_dgrad("phases-of-two-sizes", torch.float16), least_dgrad("phases-of-two-sizes", torch.float16)
            )
    finally:
        cuda_emulated.ensure()


# ResNet-50, 128 images: C, K, size, kernel -> the share of partial sums, written and read again, in percent of what
# a pass itself reads and writes in bfloat16, as docs/verification.md has it.
PARTIAL_SUMS = {
    (64, 256, 56, 1): (15, 1, 2),
    (256, 64, 56, 1): (4, 5, 2),
    (1024, 256, 14, 1): (4, 5, 11),
    (2048, 512, 7, 1): (4, 5, 22),
    (512, 512, 7, 3): (7, 3, 98),
}


@pytest.mark.parametrize("layer", PARTIAL_SUMS, ids=lambda layer: "-".join(map(str, layer)))
def test_partial_sums_take_what_the_traffic_table_says(layer: tuple[int, int, int, int]) -> None:
    (c, k, size, kernel), padding, n = layer, layer[3] // 2, 128
    shape = (n, size, size, c, size, size, k, kernel, kernel, 1, 1, padding, padding, 1, 1, 1)
    pixels, filter_size = n * size * size, k * c * kernel * kernel
    tiles = -(-pixels // TILE)
    most = min(-(-216 // (-(-k // TILE) * -(-c // TILE) * kernel * kernel)), 64)
    splits = -(-pixels // max(-(-pixels // most), 512))
    kernels = native.kernels(torch.empty(0))
    partial = [getattr(kernels, f"conv_{name}_workspace")(shape) for name in ("forward", "dgrad", "wgrad")]
    assert partial == [12 * tiles * k, 8 * tiles * c, 4 * splits * filter_size]
    x, y, w = 2 * pixels * c, 2 * pixels * k, 2 * filter_size
    own = (x + w + y, 2 * y + w + 2 * x, 2 * y + x)
    assert tuple(round(200 * p / o) for p, o in zip(partial, own, strict=True)) == PARTIAL_SUMS[layer]
