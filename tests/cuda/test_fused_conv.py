"""The fused convolution, executed on the CPU: every pass, type and tile, on shapes with tails in all directions.

What the default choice sends to it is covered by tests/ops too; here every convolution goes to it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import stock_ops
from support.cases import TOLERANCE, assert_op_matches_stock, batch_norm, image
from support.conv_cases import CASES, conv_case, tile_of
from support.oracle import assert_close_three_way, relative_error
from support.precision import convolutions_in

from fused_resnet import ops

pytestmark = pytest.mark.usefixtures("fused", "one_thread")

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_stock(name: str, dtype: torch.dtype) -> None:
    x, weight, geometry = conv_case(name, dtype)
    args = (x, batch_norm(x.shape[1]), "relu", weight, *geometry)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype)


@pytest.mark.parametrize("bn", [True, False])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations(activation: str, bn: bool) -> None:
    x, weight, geometry = conv_case("1x1-tails", torch.float32)
    args = (x, batch_norm(x.shape[1]) if bn else None, activation, weight, *geometry)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", ["1x1", "1x1-stride2", "3x3", "grouped"])
def test_large_tile_matches_stock(name: str, dtype: torch.dtype) -> None:
    x, weight, geometry = conv_case(name, dtype)
    args = (x, batch_norm(x.shape[1]), "relu", weight, *geometry)
    with tile_of("large"):
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype)


def test_work_for_a_whole_device_is_computed_in_large_tiles() -> None:
    """108 tiles of 128 x 128: the statistics, whose sums depend on the tile, tell which it was."""
    x, weight = image(108, 8, 16, 8, dtype=torch.bfloat16), torch.randn(128, 8, 1, 1).bfloat16()

    def statistics(tile: str, x: torch.Tensor) -> torch.Tensor:
        with tile_of(tile):
            return torch.cat(ops.bn_act_conv(x, None, "identity", weight)[1:])

    assert not torch.equal(statistics("small", x), statistics("large", x))
    assert torch.equal(statistics("automatic", x), statistics("large", x))
    assert torch.equal(statistics("automatic", x[1:]), statistics("small", x[1:]))


@pytest.mark.parametrize("name", ["1x1", "3x3", "grouped"])
def test_tf32_rounds_as_tf32_does(name: str, tf32: None) -> None:
    """10 bits of mantissa: to float64 with operands rounded so, only float32's own error is left."""
    x, weight, geometry = conv_case(name, torch.float32)
    y, _, _ = ops.bn_act_conv(x, None, "identity", weight, *geometry)
    rounded = [(t.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32).double() for t in (x, weight)]
    stock, _, _ = stock_ops.bn_act_conv(x.double(), None, "identity", weight.double(), *geometry)
    want, _, _ = stock_ops.bn_act_conv(rounded[0], None, "identity", rounded[1], *geometry)
    assert relative_error(y, want) < 1e-6 < 1e-4 < relative_error(y, stock) < 1e-3


@pytest.mark.parametrize("name", ["1x1", "1x1-tails", "1x1-stride2", "3x3"])
def test_tf32_gradients(name: str, tf32: None) -> None:
    x, weight, geometry = conv_case(name, torch.float32)
    args = (x, batch_norm(x.shape[1]), "silu", weight, *geometry)  # no jump in its derivative
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float32, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", ["1x1", "1x1-tails", "3x3-stride2", "grouped"])
def test_inference_matches_stock(name: str, residual: bool, dtype: torch.dtype) -> None:
    x, weight, geometry = conv_case(name, dtype)
    bn, bias = batch_norm(weight.shape[0]), torch.randn(weight.shape[0]).to(dtype)
    shape = stock_ops.conv_bn_add_act(x, weight, None, None, "identity", *geometry).shape
    r = image(*shape, dtype=dtype) if residual else None
    ours = ops.conv_bn_add_act(x, weight, bn, r, "relu", *geometry, bias=bias)
    shifted = bn._replace(mean=bn.mean - bias.float())  # the bias, before the norm
    stock = stock_ops.conv_bn_add_act(x, weight, shifted, r, "relu", *geometry)
    wide = ops.BatchNorm(*(v.double() for v in shifted[:4]), bn.eps)
    ref = stock_ops.conv_bn_add_act(
        x.double(), weight.double(), wide, None if r is None else r.double(), "relu", *geometry
    )
    assert_close_three_way(ours, stock, ref, atol=TOLERANCE[dtype])


def test_bias() -> None:
    x, weight, geometry = conv_case("1x1-tails", torch.float32)

    def with_bias(op: Any) -> Any:
        return lambda bias, *args: op(*args, bias=bias)

    args = (torch.randn(weight.shape[0]), x, batch_norm(x.shape[1]), "relu", weight, *geometry)
    assert_op_matches_stock(with_bias(ops.bn_act_conv), with_bias(stock_ops.bn_act_conv), args, torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_weight_in_any_layout(layout: str) -> None:
    x, weight, geometry = conv_case("3x3", torch.float16)
    laid_out = {
        "contiguous": weight.contiguous(),
        "channels_last": weight.contiguous(memory_format=torch.channels_last),
        "sliced": torch.cat([weight, weight], 1)[:, : weight.shape[1]],
    }[layout].requires_grad_()
    y, _, _ = ops.bn_act_conv(x, None, "identity", laid_out, *geometry)
    want, _, _ = ops.bn_act_conv(x, None, "identity", weight, *geometry)
    (g,) = torch.autograd.grad(y.float().square().sum(), laid_out)
    assert torch.equal(y, want)
    assert g.stride() == torch.empty_like(laid_out).stride()


def test_misaligned_tensors_take_the_scalar_path() -> None:
    """A view that begins two bytes behind a 16-byte boundary."""
    x, weight, geometry = conv_case("1x1", torch.float16)
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    shifted = memory[1:].view(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)
    shifted.copy_(x)
    assert shifted.data_ptr() % 16 and shifted.is_contiguous(memory_format=torch.channels_last)
    bn = batch_norm(x.shape[1])
    y, want = (ops.bn_act_conv(t, bn, "relu", weight, *geometry)[0] for t in (shifted, x))
    assert torch.equal(y, want)


def test_statistics_where_the_mean_dwarfs_the_deviation() -> None:
    x, weight = image(8, 65, 17, 19) + 1e4, torch.eye(65)[:, :, None, None]
    _, mean, var = ops.bn_act_conv(x, None, "identity", weight)
    want_var, want_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_error(mean, want_mean) < 1e-7
    assert relative_error(var, want_var) < 1e-5


ORDERED = [
    *((name, dtype, "small", "ieee") for name in ("1x1", "3x3-stride2") for dtype in DTYPES),
    *((name, torch.float32, "small", "tf32") for name in ("1x1", "3x3-stride2")),
    *((name, dtype, "large", "ieee") for name in ("1x1", "3x3") for dtype in DTYPES[:2]),
]


@pytest.mark.parametrize(("name", "dtype", "tile", "precision_of_float32"), ORDERED)
def test_same_bits_in_any_order(
    name: str, dtype: torch.dtype, tile: str, precision_of_float32: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over ten random orders of threads and blocks, and both kinds of what shared memory holds before it is written."""
    x, weight, geometry = conv_case(name, dtype)
    bn = ops.BatchNorm(*(v.requires_grad_() for v in batch_norm(x.shape[1])[:4]), 1e-5)
    leaves = [x.requires_grad_(), weight.requires_grad_(), *bn[:4]]

    def run(seed: int) -> list[torch.Tensor]:
        monkeypatch.setenv("CUDA_ON_CPU_SEED", str(seed))
        with tile_of(tile), convolutions_in(precision_of_float32):
            y, mean, var = ops.bn_act_conv(x, bn, "gelu", weight, *geometry)
            return [y, mean, var, *torch.autograd.grad(y.float().square().sum() + var.sum() + mean.sum(), leaves)]

    first = run(0)
    for seed in range(1, 10):
        assert all(torch.equal(a, b) for a, b in zip(first, run(seed), strict=True))


def test_float64_has_no_kernel() -> None:
    """The choice keeps it away; asked nevertheless, the launch says so."""
    from fused_resnet.backends.cuda import native

    x = torch.randn(1, 8, 2, 2, dtype=torch.float64)
    call = (native.DTYPES[torch.float64], False, 0, (1, 2, 2, 8, 2, 2, 8, 1, 1, 1, 1, 0, 0, 1, 1, 1))
    with pytest.raises(RuntimeError, match="conv_bn_add_act"):
        native.kernels(x).conv_bn_add_act((0, 0), call, (0, 0.0), 0, 0, 0, (0, 0, 0, 0, 0.0), 0, 0)
