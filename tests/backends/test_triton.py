"""The Triton backend beyond the shared op suite: shipped tiles, program orders, tuning, its absence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.cases import batch_norm, image

pytest.importorskip("triton")
from support.parity import assert_parity, randomise_batch_norms, weighted_sum
from support.precision import convolutions_in
from triton_strict import checks, program_order
from triton_strict.checks import tensors

import fused_resnet
from fused_resnet import nn, use_backend
from fused_resnet.backends import choices, tune
from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv
from fused_resnet.backends.triton import configs, conv_choice, launch, tuning
from fused_resnet.backends.triton.channel_statistics import channel_statistics

TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Each kernel in float16, too.
ORDERED = [(c, d) for c in checks.CASES for d in TYPES[: 3 if c in (*checks.ALIGNED, *checks.POINTWISE) else 2]]
TILES = [(d, tile) for d in TYPES for tile in (*configs.PRODUCT[d.itemsize], *configs.UNALIGNED[d.itemsize])]


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch, tune_file: Path) -> None:
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", "implicit_product")


@pytest.mark.parametrize(("dtype", "tile"), TILES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("case", ["bn_act_conv, 1x1", "bn_act_conv_backward, strided", "conv_bn_add_act"])
def test_every_product_tile(case: str, dtype: torch.dtype, tile: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles in ("PRODUCT", "UNALIGNED"):
        monkeypatch.setattr(configs, tiles, {dtype.itemsize: (tile,)})
    with tiles_of_launches(monkeypatch) as tiles:
        checks.check(backend, case, dtype)
    assert dict(zip(("BM", "BN", "BK"), tile, strict=False)) in tiles


@pytest.mark.parametrize("tile", configs.POINTWISE, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("case", checks.POINTWISE)
def test_every_pointwise_tile(case: str, dtype: torch.dtype, tile: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "POINTWISE", (tile,))
    with tiles_of_launches(monkeypatch) as tiles:
        checks.check(backend, case, dtype)
    assert any("BC" in t and t["BM"] * t["BC"] == tile[0] for t in tiles)


@contextmanager
def tiles_of_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, int]]]:
    """Collects the tile of every launch within."""
    run, tiles = launch.run, list[dict[str, int]]()

    def seen(kernel: object, programs: int, device: torch.device, config: configs.Config, *args: object, **kw: object):
        tiles.append(config.tile)
        run(kernel, programs, device, config, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(launch, "run", seen)
        yield tiles


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


@pytest.mark.parametrize("dtype", TYPES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize(
    "case", ["bn_add_act_backward", "contiguous", "bn_act_max_pool_backward", "channel_statistics"]
)
def test_programs_that_walk_several_tiles(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel that sums: two or three tiles a program, the last ones short or empty."""
    monkeypatch.setattr(configs, "POINTWISE", ((1024, 2),))
    monkeypatch.setitem(checks.CASES, "contiguous", ("bn_add_act_backward", _with_two_norms))
    one = checks.check(backend, case, dtype)
    monkeypatch.setattr(configs, "PARTS", 4)
    several = checks.check(backend, case, dtype)
    assert not all(torch.equal(a, b) for a, b in zip(one, several, strict=True))  # summed in another order


def _with_two_norms(dtype: torch.dtype) -> tuple:
    g_out, x, residual = (image(2, 5, 37, 61, dtype=dtype, layout="contiguous") for _ in range(3))
    return g_out, x, batch_norm(5), residual, batch_norm(5), Activation("silu")


@pytest.mark.parametrize(("case", "dtype"), ORDERED, ids=lambda v: str(v).removeprefix("torch."))
def test_same_bits_in_ten_program_orders(case: str, dtype: torch.dtype) -> None:
    results = []
    for seed in range(10):
        with program_order(seed):
            results.append(checks.check(backend, case, dtype))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("case", checks.PRODUCTS)
def test_products_in_tf32(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mantissas of 10 bits: their rounding, and no more."""
    monkeypatch.setattr(launch, "forced_precision", "tf32")
    monkeypatch.setitem(checks.ALLOWED, torch.float32, 1e-3)
    narrow = checks.check(backend, case, torch.float32)
    monkeypatch.setattr(launch, "forced_precision", "ieee")
    whole = checks.check(backend, case, torch.float32)
    assert not all(torch.equal(a, b) for a, b in zip(narrow, whole, strict=True))


@pytest.mark.parametrize("conv", ["implicit_product", "library"])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_training_step_of_a_block(block: str, conv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, every gradient and the running statistics, as stock."""
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", conv)
    for tiles in ("PRODUCT", "UNALIGNED"):
        monkeypatch.setattr(configs, tiles, {4: ((256, 128, 64, 4, 1),)})
    model = getattr(nn, block)(16, 16 if block == "BasicBlock" else 4)
    with use_backend("triton"):
        before = sum(fused_resnet.backends.fallbacks().values())
        assert_parity(randomise_batch_norms(model), weighted_sum(torch.randn(2, 16, 6, 6)))
    assert sum(fused_resnet.backends.fallbacks().values()) == before


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
    x, weight, conv = (
        image(2, 16, 9, 7, dtype=torch.bfloat16),
        torch.randn(32, 16, 1, 1),
        Conv((1, 1), (0, 0), (1, 1), 1),
    )
    args = (x, None, Activation("relu"), weight.to(torch.bfloat16), None, conv, True)
    found = tune_by_a_clock_that_likes_the_last(lambda: backend.bn_act_conv(*args))
    assert {t.slot: t.chosen for t in found} == {
        "bn_act_conv": "64x64x32",
        "bn_add_act": "1024x2",
        "channel_statistics": "1024x2",
        "bn_act_conv.kernel": "library",
    }
    assert tuning.product("bn_act_conv", x, args[2], args[3], conv).tile == {"BM": 64, "BN": 64, "BK": 32}
    assert not conv_choice.implicit_product("bn_act_conv", x, args[3], conv)
    assert conv_choice.implicit_product("bn_act_conv", x[:1], args[3], conv)  # another shape


def test_channels_that_are_not_aligned_have_a_tile_of_their_own() -> None:
    args = checks.CASES["bn_act_conv, 1x1"][1](torch.bfloat16)
    found = tune_by_a_clock_that_likes_the_last(lambda: backend.bn_act_conv(*args))
    assert [list(t.ms) for t in found] == [["32x32x32"]]


def test_activations_on_tensor_cores_may_take_all_registers() -> None:
    conv = Conv((1, 1), (0, 0), (1, 1), 1)

    def options(name: str, dtype: torch.dtype, channels: int, hip: bool = False) -> dict[str, int]:
        x, weight = image(1, channels, 2, 2).to(dtype), torch.empty(channels, channels, 1, 1, dtype=dtype)
        return launch.options(tuning.product("bn_act_conv", x, Activation(name), weight, conv), hip)

    for name in ("gelu", "relu6", "leaky_relu", "silu", "hardswish"):
        assert options(name, torch.bfloat16, 16) == {"num_warps": 8, "num_stages": 3, "maxnreg": 255}
    assert "maxnreg" not in options("gelu", torch.bfloat16, 16, hip=True)  # an option of NVIDIA's alone
    assert "maxnreg" not in options("relu", torch.bfloat16, 16) | options("identity", torch.bfloat16, 16)
    assert "maxnreg" not in options("gelu", torch.bfloat16, 17)
    assert "maxnreg" not in options("gelu", torch.float32, 16)


@pytest.mark.parametrize("case", checks.CASES)
def test_tuning_changes_no_argument(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments = checks.CASES[case]
    args = arguments(torch.float32)
    before = [t.clone() for t in tensors(args)]
    with tiles_of_launches(monkeypatch) as tiles:
        found = tune_by_a_clock_that_likes_the_last(lambda: checks.function_of(backend, function)(*args))
    if case in checks.ALIGNED:
        candidates = configs.PRODUCT[4]
        assert len(candidates) > 1 and all(len(t.ms) == len(candidates) for t in found)
        assert {tile[:3] for tile in candidates} <= {tuple(t.values()) for t in tiles}
    assert all(torch.equal(a, b) for a, b in zip(tensors(args), before, strict=True))


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("conv", ["implicit_product", "library"])
def test_opcheck_of_bn_act_conv(conv: str, statistics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ops': tests/ops."""
    monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", conv)
    x, weight = image(1, 3, 4, 3).requires_grad_(), torch.randn(2, 3, 1, 1, requires_grad=True)
    vectors = [torch.rand(3).requires_grad_() for _ in range(4)]
    args = (x, *vectors, 1e-5, "relu", 0.01, weight, None, (1, 1), (0, 0), (1, 1), 1, statistics)
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
