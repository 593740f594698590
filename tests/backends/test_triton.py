"""The Triton backend beyond the shared op suite: shipped tiles, program orders, 64-bit offsets, tuning, its absence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from support.cases import image

pytest.importorskip("triton")
from support.parity import assert_parity, randomise_batch_norms, weighted_sum
from support.precision import convolutions_in
from triton_strict import checks, only_programs, program_order

import fused_resnet
from fused_resnet import nn, use_backend
from fused_resnet.backends import choices, tune
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv
from fused_resnet.backends.triton import configs, conv_choice, launch, tuning
from fused_resnet.backends.triton.channel_statistics import channel_statistics

PRODUCTS = [c for c in checks.CASES if "conv" in c]
TILES = [(dtype, tile) for dtype in (torch.float32, torch.bfloat16) for tile in configs.PRODUCT[dtype.itemsize]]


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch, tune_file: Path) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


@pytest.mark.parametrize(("dtype", "tile"), TILES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("case", ["bn_act_conv, 1x1", "bn_act_conv_backward, strided", "conv_bn_add_act"])
def test_every_product_tile(case: str, dtype: torch.dtype, tile: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "PRODUCT", {dtype.itemsize: (tile,)})
    checks.check(backend, case, dtype)


@pytest.mark.parametrize("tile", configs.POINTWISE, ids=str)
@pytest.mark.parametrize("case", [c for c in checks.CASES if "conv" not in c])
def test_every_pointwise_tile(case: str, tile: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "POINTWISE", (tile,))
    checks.check(backend, case, torch.bfloat16)


def test_many_programs_leave_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """More partial results than one program folds, and programs that walk several tiles, the last ones short."""
    monkeypatch.setattr(configs, "POINTWISE", ((256, 1),))
    monkeypatch.setattr(configs, "PARTS", 70)
    x = image(2, 5, 37, 41) + 100
    mean, var = channel_statistics(x)
    want = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert torch.allclose(mean.double(), want[1], rtol=1e-7) and torch.allclose(var.double(), want[0], rtol=1e-6)
    monkeypatch.setitem(checks.CASES, "large", ("bn_add_act_backward", lambda dtype: _large(x.to(dtype))))
    checks.check(backend, "large", torch.float32)


def _large(x: torch.Tensor) -> tuple:
    bn = BatchNorm(*(torch.randn(5) for _ in range(1)), torch.ones(5), None, None, 1e-5)
    return torch.randn_like(x), x - 100, bn, None, None, Activation("silu")


@pytest.mark.parametrize(
    "case",
    ["bn_add_act_backward", "bn_act_max_pool_backward", "bn_act_conv, 1x1", "bn_act_conv_backward, 1x1"],
)
def test_same_bits_in_ten_program_orders(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "PRODUCT", {4: ((64, 32, 32, 4, 3),)})
    results = []
    for seed in range(10):
        with program_order(seed):
            results.append(checks.check(backend, case, torch.float32))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("conv", ["implicit_product", "library"])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_training_step_of_a_block(block: str, conv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, every gradient and the running statistics, as stock."""
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", conv)
    monkeypatch.setattr(configs, "PRODUCT", {4: ((256, 128, 64, 4, 1),)})
    model = getattr(nn, block)(16, 16 if block == "BasicBlock" else 4)
    with use_backend("triton"):
        before = sum(fused_resnet.backends.fallbacks().values())
        assert_parity(randomise_batch_norms(model), weighted_sum(torch.randn(2, 16, 6, 6)))
    assert sum(fused_resnet.backends.fallbacks().values()) == before


def test_offsets_beyond_2_to_the_31(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program of a tensor with more elements than 32 bits count; memory is reserved, hardly touched."""
    pixels, channels = 2**21 + 3, 1024
    x = torch.empty(pixels * channels, dtype=torch.bfloat16)
    x[-channels:] = torch.arange(channels)
    x = x.view(1, pixels, 1, channels).permute(0, 3, 1, 2)
    with only_programs(lambda count: {count - 1}):
        out = backend.bn_add_act(x, None, None, None, Activation("identity"))
    assert torch.equal(out[0, -64:, -1, 0], x[0, -64:, -1, 0])


def test_float32_products_follow_pytorchs_setting() -> None:
    class OnCuda:
        dtype, is_cuda = torch.float32, True

    for setting in ("tf32", "ieee"):
        with convolutions_in(setting):
            assert launch.float32_precision(OnCuda()) == setting
    assert launch.float32_precision(torch.zeros(1)) == "ieee"


def test_which_convolutions_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_RESNET_TRITON_CONV")

    def ours(dtype: torch.dtype, kernel: int, groups: int = 1) -> bool:
        conv = Conv((1, 1), (kernel // 2, kernel // 2), (1, 1), groups)
        weight = torch.zeros(8, 8 // groups, kernel, kernel, dtype=dtype)
        return conv_choice.implicit_product("bn_act_conv", torch.zeros(1, 8, 5, 5, dtype=dtype), weight, conv)

    assert ours(torch.bfloat16, 1) and ours(torch.float16, 1)
    assert not ours(torch.float32, 1) and not ours(torch.bfloat16, 3) and not ours(torch.bfloat16, 1, groups=2)
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "fastest")
    with pytest.raises(ValueError, match="expected auto, implicit_product or library, got 'fastest'"):
        ours(torch.bfloat16, 1)


def tune_by_a_clock_that_likes_the_last(call: Callable[[], object]) -> list[choices.Tuned]:
    def measure(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        for candidate in candidates.values():
            candidate()
        return {name: -float(place) for place, name in enumerate(candidates)}

    found = list(choices.tuned_choices(call, measure))
    tune.store({tuned.key: tuned.chosen for tuned in found})
    return found


def test_tuned_choices_are_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_RESNET_TRITON_CONV")
    args = checks.CASES["bn_act_conv, 1x1"][1](torch.bfloat16)
    found = tune_by_a_clock_that_likes_the_last(lambda: backend.bn_act_conv(*args))
    assert {t.slot: t.chosen for t in found} == {"bn_act_conv": "64x64x32", "bn_act_conv.kernel": "library"}
    assert tuning.product("bn_act_conv", args[0], args[3], args[5]).tile == {"BM": 64, "BN": 64, "BK": 32}
    assert not conv_choice.implicit_product("bn_act_conv", args[0], args[3], args[5])
    assert conv_choice.implicit_product("bn_act_conv", args[0][:1], args[3], args[5])  # another shape


def test_tuning_changes_no_argument() -> None:
    for op, case in (("bn_add_act_backward", "bn_add_act_backward"), ("bn_act_conv_backward", PRODUCTS[3])):
        args = checks.CASES[case][1](torch.float32)
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        tune_by_a_clock_that_likes_the_last(lambda op=op, args=args: getattr(backend, op)(*args))
        for a, b in zip(args, before, strict=True):
            assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


def test_opcheck() -> None:
    x, weight = image(1, 3, 4, 3).requires_grad_(), torch.randn(2, 3, 1, 1, requires_grad=True)
    vectors = [torch.rand(3).requires_grad_() for _ in range(4)]
    args = (x, *vectors, 1e-5, "relu", 0.01, weight, None, (1, 1), (0, 0), (1, 1), 1, True)
    with use_backend("triton"):
        torch.library.opcheck(torch.ops.fused_resnet.bn_act_conv.default, args)


def test_without_triton_the_backend_is_absent_with_the_reason() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fused_resnet\n"
        "assert 'triton' not in fused_resnet.available_backends()\n"
        "fused_resnet.ops.bn_add_act(torch.randn(1, 4, 3, 3))\n"
        "print(fused_resnet.info()['backends']['triton'])\n"
        "fused_resnet.use_backend('triton').__enter__()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "triton" in done.stdout and "pip install triton" in done.stdout
    assert "ValueError: use_backend: backend 'triton' is not available here" in done.stderr


def test_pixels_are_counted_in_32_bits() -> None:
    assert backend.unsupported("bn_add_act", torch.empty(2**15, 1, 2**15, 1, device="meta")) is not None
    assert backend.unsupported("bn_add_act", torch.zeros(1, 1, 1, 1, dtype=torch.float64)) == "float64"
    assert backend.unsupported("bn_add_act", torch.zeros(1, 1, 1, 1)) is None
