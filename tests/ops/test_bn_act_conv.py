"""bn_act_conv: forward, statistics and every gradient, on every backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from support import stock_ops
from support.cases import LAYOUTS, assert_op_matches_stock, batch_norm, image
from support.oracle import relative_error
from torch import Tensor

from fused_resnet import ops

# (N, C, H, W), K, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": ((2, 16, 14, 14), 32, 3, 1, 1, 1, 1),
    "1x1": ((2, 65, 7, 9), 17, 1, 1, 0, 1, 1),
    "1x1-stride2": ((1, 24, 9, 8), 48, 1, 2, 0, 1, 1),
    "3x3-stride2": ((3, 7, 13, 10), 123, 3, 2, 1, 1, 1),
    "stem": ((2, 3, 20, 23), 64, 7, 2, 3, 1, 1),
    "dilated": ((1, 16, 12, 12), 16, 3, 1, 2, 2, 1),
    "grouped": ((2, 32, 8, 8), 64, 3, 1, 1, 1, 8),
    "asymmetric": ((2, 5, 9, 11), 6, (3, 1), (2, 1), (1, 0), (1, 1), 1),
    "one-pixel": ((4, 40, 1, 1), 8, 1, 1, 0, 1, 1),
    "one-channel": ((2, 1, 6, 6), 1, 3, 1, 1, 1, 1),
}


def _case(name: str, layout: str = "channels_last", dtype: torch.dtype = torch.float32) -> tuple:
    shape, k, kernel, stride, padding, dilation, groups = CASES[name]
    r, s = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = torch.randn(k, shape[1] // groups, r, s) * (shape[1] // groups * r * s) ** -0.5
    return image(*shape, layout=layout, dtype=dtype), weight, (stride, padding, dilation, groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matches_stock(target: str, case: str, dtype: torch.dtype) -> None:
    x, weight, geometry = _case(case)
    args = (x.to(dtype), batch_norm(x.shape[1]), "relu", weight.to(dtype), *geometry)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations_and_layouts(target: str, activation: str, layout: str) -> None:
    x, weight, geometry = _case("1x1", layout)
    args = (x, batch_norm(x.shape[1]), activation, weight, *geometry)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float32)


def test_without_batch_norm(target: str) -> None:
    x, weight, geometry = _case("3x3")
    for activation in ("identity", "silu"):
        args = (x, None, activation, weight, *geometry)
        assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float32)


def test_bias(target: str) -> None:
    x, weight, geometry = _case("3x3")

    def with_bias(op):
        return lambda bias, *args: op(*args, bias=bias)

    args = (torch.randn(32), x, batch_norm(16), "relu", weight, *geometry)
    assert_op_matches_stock(with_bias(ops.bn_act_conv), with_bias(stock_ops.bn_act_conv), args, torch.float32)


def test_norm_without_affine(target: str) -> None:
    x, weight, geometry = _case("3x3")
    bn = batch_norm(16)._replace(weight=None, bias=None)
    args = (x, bn, "relu", weight, *geometry)
    assert_op_matches_stock(ops.bn_act_conv, stock_ops.bn_act_conv, args, torch.float32)


def test_output_is_channels_last(target: str) -> None:
    x, weight, geometry = _case("3x3", "contiguous")
    y, mean, var = ops.bn_act_conv(x, None, "identity", weight, *geometry)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert mean.dtype == var.dtype == torch.float32


def test_padding_is_zero_after_the_activation(target: str) -> None:
    x, weight, _ = _case("3x3")
    bn = ops.BatchNorm(torch.zeros(16), torch.ones(16), torch.ones(16), torch.full((16,), 5.0), 0.0)  # act(norm(0)) = 5
    y, _, _ = ops.bn_act_conv(x, bn, "relu", weight, 1, 1)
    want, _, _ = stock_ops.bn_act_conv(x.double(), bn, "relu", weight.double(), 1, 1)
    assert relative_error(y, want) < (5e-6 if x.is_cuda else 1e-6)  # cuDNN may choose Winograd's algorithm


def test_statistics_where_the_mean_dwarfs_the_deviation(target: str) -> None:
    """A naive sum of squares would lose all digits of a deviation 10,000 times smaller than the mean."""
    x = image(8, 65, 17, 19) + 1e4
    weight = torch.eye(65)[:, :, None, None]
    _, mean, var = ops.bn_act_conv(x, None, "identity", weight)
    want_var, want_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert relative_error(mean, want_mean) < 1e-7
    assert relative_error(var, want_var) < 1e-5


@pytest.mark.parametrize(
    ("channels", "height", "width"), [(1, 61, 67), (3, 61, 67), (64, 61, 67), (65, 31, 67), (123, 13, 67)]
)
def test_statistics_over_many_pixels(target: str, channels: int, height: int, width: int) -> None:
    x = image(4, channels, height, width) * torch.linspace(0.1, 50, channels)[:, None, None]
    _, mean, var = ops.bn_act_conv(x, None, "identity", torch.eye(channels)[:, :, None, None])
    want_var, want_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert torch.allclose(mean.double(), want_mean, rtol=1e-5, atol=1e-6)
    assert relative_error(var, want_var) < 1e-6


def test_without_statistics(target: str) -> None:
    x, weight, geometry = _case("3x3")
    bn = batch_norm(16)
    y, mean, var = ops.bn_act_conv(x, bn, "relu", weight.requires_grad_(), *geometry, statistics=False)
    want, _, _ = ops.bn_act_conv(x, bn, "relu", weight, *geometry)
    assert torch.equal(y, want) and mean.numel() == var.numel() == 0
    assert not mean.requires_grad
    (got,) = torch.autograd.grad(y.square().sum(), weight)
    (expected,) = torch.autograd.grad(want.square().sum(), weight)
    assert torch.equal(got, expected)


def test_gradients_of_statistics_alone(target: str) -> None:
    x, weight, geometry = _case("3x3")
    weight.requires_grad_()
    for pick in (1, 2):
        (got,) = torch.autograd.grad(ops.bn_act_conv(x, None, "identity", weight, *geometry)[pick].sum(), weight)
        wide = weight.double()
        (want,) = torch.autograd.grad(
            stock_ops.bn_act_conv(x.double(), None, "identity", wide, *geometry)[pick].sum(), weight
        )
        assert relative_error(got, want) < 1e-5


@pytest.mark.parametrize("frozen", ["x", "weight", "bn"])
def test_frozen_inputs_get_no_gradient(target: str, frozen: str) -> None:
    x, weight, geometry = _case("3x3")
    bn = batch_norm(16)
    tensors = {"x": [x], "weight": [weight], "bn": list(bn[:4])}
    free = [t.requires_grad_() for name, ts in tensors.items() if name != frozen for t in ts]
    got = torch.autograd.grad(ops.bn_act_conv(x, bn, "relu", weight, *geometry)[0].square().sum(), free)
    for t in tensors[frozen]:
        t.requires_grad_()
    everything = [t for ts in tensors.values() for t in ts]
    want = dict(
        zip(
            map(id, everything),
            torch.autograd.grad(ops.bn_act_conv(x, bn, "relu", weight, *geometry)[0].square().sum(), everything),
            strict=True,
        )
    )
    for t, g in zip(free, got, strict=True):
        assert torch.equal(g, want[id(t)])


def test_what_a_hook_has_kept_in_another_layout(target: str) -> None:
    """As ``save_on_cpu(pin_memory=True)`` does."""
    x, weight, geometry = _case("3x3-stride2")
    x, weight, bn = x.requires_grad_(), weight.requires_grad_(), batch_norm(x.shape[1])

    def gradients() -> tuple[Tensor, ...]:
        y, mean, var = ops.bn_act_conv(x, bn, "relu", weight, *geometry)
        return torch.autograd.grad(y.square().sum() + mean.sum() + var.square().sum(), (x, weight))

    want = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
        assert all(map(torch.equal, gradients(), want))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradcheck(target: str, activation: str) -> None:
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    vectors = [(torch.rand(2, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(4)]

    def op(x, weight, *vectors):
        return ops.bn_act_conv(x, ops.BatchNorm(*vectors, 1e-5), activation, weight, 2, 1)

    assert torch.autograd.gradcheck(op, (x, weight, *vectors))


def test_empty_batch(target: str) -> None:
    x, weight = torch.randn(0, 4, 6, 6, requires_grad=True), torch.randn(8, 4, 3, 3, requires_grad=True)
    bn = ops.BatchNorm(*(v.requires_grad_() for v in batch_norm(4)[:4]), 1e-5)
    y, mean, var = ops.bn_act_conv(x, bn, "relu", weight, 1, 1)
    assert y.shape == (0, 8, 6, 6)
    grads = torch.autograd.grad((y.sum() + mean.sum() + var.sum()), (x, weight, *bn[:4]))
    assert all(torch.isfinite(g).all() for g in (mean, var, *grads))


def test_double_backward_raises(target: str) -> None:
    x, weight, geometry = _case("3x3")
    weight.requires_grad_()
    y, _, _ = ops.bn_act_conv(x, None, "identity", weight, *geometry)
    (g,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        g.square().sum().backward()


def test_same_bits_every_time(target: str) -> None:
    x, weight, geometry = _case("3x3-stride2")
    weight.requires_grad_()

    def run():
        y, mean, var = ops.bn_act_conv(x, batch_norm_fixed, "relu", weight, *geometry)
        return y, mean, var, *torch.autograd.grad((y.square().sum() + var.sum()), weight)

    batch_norm_fixed = batch_norm(7)
    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("statistics", [True, False])
def test_opcheck(target: str, statistics: bool) -> None:
    x, weight, _ = _case("grouped")
    vectors = [v.requires_grad_() for v in batch_norm(32)[:4]]
    geometry = ((1, 1), (1, 1), (1, 1), 8, statistics)
    args = (x.requires_grad_(), *vectors, 1e-5, "relu", 0.01, weight.requires_grad_(), None, *geometry)
    torch.library.opcheck(torch.ops.fused_resnet.bn_act_conv.default, args)


def test_autocast(target: str) -> None:
    x, weight, geometry = _case("3x3")
    with torch.autocast(x.device.type, torch.bfloat16):
        y, mean, _ = ops.bn_act_conv(x, batch_norm(16), "relu", weight.requires_grad_(), *geometry)
    assert y.dtype == torch.bfloat16 and mean.dtype == torch.float32
    (g,) = torch.autograd.grad(y.float().sum(), weight)
    assert g.dtype == torch.float32
