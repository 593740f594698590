"""The CPU's convolution engine: its algorithms, their accuracy, and what it keeps."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support import stock_ops
from support.cases import assert_op_matches_stock, batch_norm, image
from support.oracle import relative_error

from fused_resnet import ops
from fused_resnet.backends import reference
from fused_resnet.backends.arguments import Activation, Conv

cpu = pytest.importorskip("fused_resnet.backends.cpu", reason="the native module is not built")

WINOGRAD = ("winograd_f2", "winograd_f4", "winograd_f5")
IN_PARTS = ("bf16x1", "bf16x3", "bf16x6")
IDENTITY = Activation("identity")
# Tile registers, and the plain arrays that stand for them everywhere else.
TILE_ISAS = [isa for isa in cpu.supported_isas() if isa in ("amx", "baseline")]

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(params=cpu.supported_isas())
def isa(request: pytest.FixtureRequest):
    before = cpu.isa()
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(before)


def sampled_cases(count: int, seed: int) -> list[tuple]:
    """(N, C, K, H, W, kernel, stride, padding, dilation, groups), tails and all, of which each has an output."""
    rng = random.Random(seed)
    cases: list[tuple] = []
    while len(cases) < count:
        groups = rng.choice([1, 1, 1, 2, 4, 8])
        c, k = (rng.choice([1, 3, 7, 16, 17, 32, 65]) * groups for _ in range(2))
        h, w = rng.choice([1, 2, 5, 7, 8, 13, 20]), rng.choice([1, 3, 6, 7, 9, 14, 33])
        kernel = rng.choice([(1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (2, 3), (1, 3)])
        stride = rng.choice([(1, 1), (1, 1), (2, 2), (3, 2), (1, 2)])
        padding, dilation = rng.choice([(0, 0), (1, 1), (2, 1), (3, 3)]), rng.choice([(1, 1), (1, 1), (2, 2), (1, 3)])
        conv = Conv(stride, padding, dilation, groups)
        if min(conv.output_size((h, w), kernel)) > 0 and c * k <= 70 * 70:
            cases.append((rng.choice([1, 2, 5]), c, k, h, w, kernel, *conv))
    return cases


def arguments(case: tuple, dtype: torch.dtype) -> tuple:
    n, c, k, h, w, kernel, stride, padding, dilation, groups = case
    weight = torch.randn(k, c // groups, *kernel) * (c // groups * kernel[0] * kernel[1]) ** -0.5
    x = image(n, c, h, w, dtype=dtype)
    return x, batch_norm(c), "silu", weight.to(dtype), stride, padding, dilation, groups


@pytest.mark.parametrize("case", sampled_cases(60, seed=1), ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
def test_direct_on_sampled_geometries(isa: str, case: tuple) -> None:
    args = arguments(case, torch.float64)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float64)
    single = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, single, torch.float32, atol=2e-6)


def depthwise_cases(count: int, seed: int) -> list[tuple]:
    """The same with one channel a group, or two outputs of one; five images, as with few pixels gradients cancel."""
    return [
        (5, c, c * (2 if i % 4 == 0 else 1), h, w, kernel, stride, padding, dilation, c)
        for i, (_, c, _, h, w, kernel, stride, padding, dilation, _) in enumerate(sampled_cases(count, seed))
        if c > 1
    ]


# No column of the filter reaches an image so narrow; and blocks of several threads, of both strides.
MORE_DEPTHWISE_CASES = [
    (2, 8, 8, 4, 1, (3, 1), (1, 2), (1, 1), (1, 1), 8),
    (1, 8, 8, 24, 2, (2, 2), (1, 4), (6, 6), (1, 1), 8),
    (5, 67, 134, 9, 8, (3, 3), (1, 1), (1, 1), (1, 1), 67),
    (9, 40, 40, 41, 37, (3, 3), (1, 1), (1, 1), (1, 1), 40),
    (6, 97, 97, 63, 65, (5, 5), (2, 2), (2, 2), (1, 1), 97),
]


@pytest.mark.parametrize("case", [*depthwise_cases(40, seed=2), *MORE_DEPTHWISE_CASES], ids=str)
def test_depthwise_on_sampled_geometries(isa: str, case: tuple) -> None:
    args = arguments(case, torch.float64)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float64)
    for dtype, atol in ((torch.float32, 2e-6), (torch.bfloat16, None)):
        if dtype == torch.bfloat16 and case[4] <= 2:
            continue  # where stock reads memory that nobody wrote, as below
        low = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in args]
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, low, dtype, atol=atol)


def grouped_cases(count: int, seed: int) -> list[tuple]:
    """The same with 2, 4 or 8 channels a group, and as many outputs."""
    cases = []
    for i, (_, c, _, h, w, kernel, stride, padding, dilation, _) in enumerate(sampled_cases(count, seed)):
        channels = (2, 4, 8)[i % 3] * min(c, 17)
        cases.append((5, channels, channels, h, w, kernel, stride, padding, dilation, min(c, 17)))
    return [case for case in cases if case[-1] > 1]


# Blocks of several threads, registers with a tail, and channels of ResNeXt's first stage.
MORE_GROUPED_CASES = [
    (9, 40, 40, 41, 37, (3, 3), (1, 1), (1, 1), (1, 1), 10),
    (6, 88, 88, 63, 65, (5, 5), (2, 2), (2, 2), (1, 1), 11),
    (3, 122, 122, 29, 31, (3, 3), (1, 1), (1, 1), (1, 1), 61),
    (2, 128, 128, 56, 56, (3, 3), (1, 1), (1, 1), (1, 1), 32),
]


@pytest.mark.parametrize("case", [*grouped_cases(40, seed=3), *MORE_GROUPED_CASES], ids=str)
def test_narrow_groups_on_sampled_geometries(isa: str, case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CONV", "grouped")
    for dtype, atol in ((torch.float64, 2e-12), (torch.float32, 2e-6), (torch.bfloat16, None)):
        if dtype == torch.bfloat16 and case[4] <= 2:
            continue  # where stock reads memory that nobody wrote, as below
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, arguments(case, dtype), dtype, atol=atol)


@pytest.mark.parametrize("case", sampled_cases(40, seed=4), ids=lambda case: "-".join(map(str, case)).replace(" ", ""))
@pytest.mark.parametrize("algorithm", IN_PARTS)
@pytest.mark.parametrize("isa", TILE_ISAS, indirect=True)
def test_parts_on_sampled_geometries(isa: str, algorithm: str, case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    dtype = torch.bfloat16 if algorithm == "bf16x1" else torch.float32
    atol = {"bf16x1": None, "bf16x3": 1e-4, "bf16x6": 4e-6}[algorithm]
    args = arguments((*case[:-1], 1), dtype)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype, atol=atol)


@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (2, 0)], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 14, 14), (1, 65, 7, 9), (3, 17, 5, 30), (5, 3, 4, 3)], ids=str)
@pytest.mark.parametrize("algorithm", WINOGRAD)
def test_winograd(isa: str, algorithm: str, shape: tuple, padding: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    # Of an image one pixel wide, tiles of 5 x 5 give little that does not cancel.
    single = 5e-5 if algorithm == "winograd_f5" else 2e-5
    for dtype, atol in ((torch.float64, 2e-12), (torch.float32, single), (torch.bfloat16, None)):
        args = arguments((*shape[:2], 33, *shape[2:], (3, 3), (1, 1), padding, (1, 1), 1), dtype)
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype, atol=atol)


@pytest.mark.parametrize("channels", [(64, 128), (17, 64), (65, 33), (3, 5)], ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 1, 1), (3, 2, 31), (1, 7, 13), (3, 15, 20), (2, 9, 2)], ids=str)
def test_winograd_of_stride_2(isa: str, shape: tuple, channels: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd and even sizes, single pixels of output, tiles that stand over: with norm, activation and statistics."""
    monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_s2")
    n, height, width = shape
    for dtype, atol in ((torch.float64, 2e-12), (torch.float32, 2e-5), (torch.bfloat16, None)):
        if dtype == torch.bfloat16 and width <= 2:
            continue  # one column of output, where stock reads memory that nobody wrote: on AMX there is NaN in it
        args = arguments((n, *channels, height, width, (3, 3), (2, 2), (1, 1), (1, 1), 1), dtype)
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype, atol=atol)


@pytest.mark.parametrize("channels", [(3, 64), (1, 17), (5, 33)], ids=str)
@pytest.mark.parametrize("padding", [(3, 3), (0, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 7, 13), (3, 15, 20), (2, 29, 8)], ids=str)
def test_winograd_of_a_stem(
    isa: str, shape: tuple, padding: tuple, channels: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7x7 and stride 2: odd and even sizes, images that end before the padding does, tiles that stand over."""
    monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_stem")
    n, height, width = shape
    for dtype, atol in ((torch.float64, 2e-12), (torch.float32, 2e-5), (torch.bfloat16, None)):
        args = arguments((n, *channels, height, width, (7, 7), (2, 2), padding, (1, 1), 1), dtype)
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype, atol=atol)


@pytest.mark.parametrize("algorithm", ["direct", *WINOGRAD, "winograd_s2", "winograd_stem", *IN_PARTS])
def test_filters_in_any_layout_give_the_same_bits(isa: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels_last, inputs before outputs, and as part of a larger filter; in direct also 1x1."""
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    kernel, stride, padding = {"winograd_stem": (7, 2, 3), "winograd_s2": (3, 2, 1)}.get(algorithm, (3, 1, 1))
    for size in (kernel, 1) if algorithm == "direct" else (kernel,):
        weight = torch.randn(35, 37, size, size) * 0.1
        layouts = (
            weight,
            weight.contiguous(memory_format=torch.channels_last),
            weight.transpose(0, 1).contiguous().transpose(0, 1),
            torch.cat([weight, weight], 1)[:, 37:],
            torch.cat([weight, weight], 1).contiguous(memory_format=torch.channels_last)[:, :37],
        )
        args = (image(3, 37, 13, 11).requires_grad_(), batch_norm(37), "relu")
        results = []
        for w in layouts:
            leaf = w.detach().requires_grad_()
            y, mean, var = ops.bn_act_conv(*args, leaf, stride, padding)
            results.append((y, mean, var, *torch.autograd.grad(y.square().sum() + var.sum(), (args[0], leaf))))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Forward, dgrad and wgrad: relative RMS error against float64, times stock's or as it is.
FACTORS = {"winograd_f2": 3, "bf16x6": 2}
LIMITS = dict.fromkeys(("winograd_f4", "winograd_f5", "winograd_s2", "winograd_stem", "bf16x3"), (5e-6, 5e-6, 6e-6))


@pytest.mark.parametrize("channels, size", [(64, 56), (128, 28), (256, 14), (512, 7)])
@pytest.mark.parametrize("algorithm", [a for a in (*FACTORS, *LIMITS) if a != "winograd_stem"])
def test_accuracy_on_resnet_layers(algorithm: str, channels: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = image(2, channels, size, size).relu()
    weight = torch.randn(channels, channels, 3, 3) * (2 / (9 * channels)) ** 0.5  # He et al. 2015
    stride = 2 if algorithm == "winograd_s2" else 1
    assert_accurate(algorithm, x, weight, Conv((stride, stride), (1, 1), (1, 1), 1), monkeypatch)


def test_accuracy_on_the_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = image(2, 3, 224, 224), torch.randn(64, 3, 7, 7) * (2 / 147) ** 0.5
    assert_accurate("winograd_stem", x, weight, Conv((2, 2), (3, 3), (1, 1), 1), monkeypatch)


def assert_accurate(
    algorithm: str, x: torch.Tensor, weight: torch.Tensor, conv: Conv, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = image(len(x), len(weight), *conv.output_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])))

    def passes(x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = F.conv2d(x, weight, None, *conv)
        g_x, g_weight, _ = reference.convolution_backward(g, x, weight, conv, (True, True, False))
        return y, g_x, g_weight

    want, stock = passes(x.double(), weight.double(), g.double()), passes(x, weight, g)
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    y, mean, _ = cpu.bn_act_conv(x, None, IDENTITY, weight, None, conv, False)
    backward = cpu.bn_act_conv_backward(g, None, None, x, None, IDENTITY, weight, y, mean, conv, (True, True, False))
    for i, (got, exact) in enumerate(zip((y, backward[0], backward[2]), want, strict=True)):
        times_stock = FACTORS.get(algorithm, 0) * relative_error(stock[i], exact)
        assert relative_error(got, exact) <= (times_stock or LIMITS[algorithm][i])


def test_tile_registers_are_left_as_they_were() -> None:
    """oneDNN sets the registers' shapes once, and expects to find them when it comes again."""
    a, b = torch.randn(70, 96, dtype=torch.bfloat16), torch.randn(96, 50, dtype=torch.bfloat16)
    args = arguments((2, 32, 48, 9, 9, (3, 3), (1, 1), (1, 1), (1, 1), 1), torch.bfloat16)
    product, y = a @ b, ops.bn_act_conv(*args)[0]
    for _ in range(3):
        assert torch.equal(a @ b, product)
        assert torch.equal(ops.bn_act_conv(*args)[0], y)


@pytest.mark.parametrize("algorithm", ["direct", "depthwise", "grouped", *WINOGRAD, "winograd_s2", *IN_PARTS])
def test_same_bits_every_time(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_CONV", algorithm)
    stride = (2, 2) if algorithm == "winograd_s2" else (1, 1)
    outputs, groups = {"depthwise": (32, 32), "grouped": (32, 8)}.get(algorithm, (48, 1))
    x, bn, *rest = arguments((4, 32, outputs, 30, 29, (3, 3), stride, (1, 1), (1, 1), groups), torch.float32)

    def run() -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), rest[1].clone().requires_grad_()]
        outputs = ops.bn_act_conv(leaves[0], bn, rest[0], leaves[1], *rest[2:])
        return [*outputs, *torch.autograd.grad([o.sum() for o in outputs], leaves)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("change", ["in place", "data", "none"])
def test_a_packed_filter_follows_its_weight(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packings = []
    pack = cpu.packed_filters._cpu.conv_pack
    monkeypatch.setattr(cpu.packed_filters._cpu, "conv_pack", lambda *a: packings.append(1) or pack(*a))
    x, weight = image(1, 32, 9, 9), torch.nn.Parameter(torch.randn(32, 32, 3, 3))
    with torch.no_grad():
        for _ in range(3):
            ops.conv_bn_add_act(x, weight, activation="identity", padding=1)
        assert len(packings) == 1
        if change == "in place":
            weight.mul_(2)
        elif change == "data":
            weight.data = torch.randn(32, 32, 3, 3)
        got = ops.conv_bn_add_act(x, weight, activation="identity", padding=1)
    assert len(packings) == (1 if change == "none" else 2)
    assert torch.allclose(got, F.conv2d(x, weight, padding=1), atol=1e-4)


def test_a_packed_filter_dies_with_its_weight() -> None:
    weight = torch.randn(16, 16, 3, 3)
    gc.collect()  # those of earlier tests
    before = len(cpu.packed_filters._packed)
    with torch.no_grad():
        ops.conv_bn_add_act(image(1, 16, 5, 5), weight)
        assert len(cpu.packed_filters._packed) == before + 1
        del weight
        gc.collect()
    assert len(cpu.packed_filters._packed) == before


def test_a_filter_may_have_gaps() -> None:
    large = torch.randn(48, 48, 3, 3)
    x = image(2, 24, 14, 14)
    for weight in (large[:24, ::2], large[::2, ::2], large[:, :24], large[:, :1].expand(48, 24, 3, 3)):
        weight = weight.detach().requires_grad_()
        y = ops.bn_act_conv(x, None, "identity", weight, padding=1)[0]
        expected = F.conv2d(x, weight, padding=1)
        assert torch.allclose(y, expected, atol=1e-3)
        with torch.no_grad():
            assert torch.allclose(ops.conv_bn_add_act(x, weight, padding=1, activation="identity"), expected, atol=1e-3)
        g_y = torch.randn_like(y)
        g_weight, expected_g = (torch.autograd.grad(t, weight, g_y)[0] for t in (y, expected))
        assert torch.allclose(g_weight, expected_g, rtol=1e-3, atol=1e-2)


def test_working_memory_is_kept_and_given_back() -> None:
    cpu.free_workspace()
    assert cpu.workspace_bytes() == 0
    args = arguments((2, 32, 32, 20, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1), torch.float32)
    first = ops.bn_act_conv(*args)[0]
    held = cpu.workspace_bytes()
    assert held > 0
    assert torch.equal(ops.bn_act_conv(*args)[0], first)
    assert cpu.workspace_bytes() == held
    cpu.free_workspace()
    assert cpu.workspace_bytes() == 0
    assert torch.equal(ops.bn_act_conv(*args)[0], first)


@pytest.mark.parametrize("dtype", [0, 1])
def test_the_multiply_add_peak_is_above_what_a_convolution_reaches(dtype: int) -> None:
    assert cpu._cpu.multiply_add_peak(dtype, 1, 0.02) > 1e8


FEWER_THREADS = """
import torch, torch.nn.functional as F
from fused_resnet import ops, set_float32_conv_precision
set_float32_conv_precision("highest")
torch.set_num_threads(8)
for kernel, stride, size in ((3, 1, 4), (3, 2, 15), (7, 2, 33), (1, 2, 20)):
    x, weight = torch.randn(6, 40, size, size), torch.randn(48, 40, kernel, kernel, requires_grad=True)
    wide = weight.detach().double().requires_grad_()
    y = ops.bn_act_conv(x, None, "relu", weight, stride, kernel // 2)[0]
    want = F.conv2d(x.double().relu(), wide, stride=stride, padding=kernel // 2)
    g = torch.randn_like(y)
    (got_g,), (want_g,) = torch.autograd.grad(y, weight, g), torch.autograd.grad(want, wide, g.double())
    for got, exact in ((y, want), (got_g, want_g)):
        assert (got.double() - exact).norm() <= 2e-6 * exact.norm(), (kernel, stride, size)
"""


@pytest.mark.parametrize("limit", [1, 3])
def test_where_openmp_gives_fewer_threads_than_asked_for(limit: int) -> None:
    """A thread's share is then larger than the number of threads asked for says, and so must its memory be."""
    environment = os.environ | {"OMP_THREAD_LIMIT": str(limit), "FUSED_RESNET_BACKEND": "cpu"}
    command = [sys.executable, "-c", FEWER_THREADS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
