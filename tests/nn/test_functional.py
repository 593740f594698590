"""fused_resnet.functional against torch.nn.functional."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.oracle import relative_error
from torch import Tensor

from fused_resnet import functional


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def assert_same(ours: Tensor, stock: Tensor, inputs: list[Tensor], others: list[Tensor]) -> None:
    assert relative_error(ours, stock) < 1e-12
    grads, other_grads = (torch.autograd.grad(y.square().sum(), xs) for y, xs in ((ours, inputs), (stock, others)))
    for a, b in zip(grads, other_grads, strict=True):
        assert (a - b).norm() <= 1e-11 * (b.norm() + 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (2, 0, 1, 1), (1, 2, 2, 4)], ids=str)
def test_conv_bn_act(training: bool, geometry: tuple[int, int, int, int], target: str) -> None:
    stride, padding, dilation, groups = geometry
    inputs = leaves((3, 8, 9, 9), (8, 8 // groups, 3, 3), (8,), (8,), (8,))
    others = [t.detach().clone().requires_grad_() for t in inputs]
    running, other_running = ([torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)] for _ in "ab")
    x, weight, bn_weight, bn_bias, bias = inputs
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    ours = functional.conv_bn_act(
        x, weight, *running, bn_weight, bn_bias, training=training, activation="silu", bias=bias, **options
    )
    y = F.conv2d(others[0], others[1], others[4], **options)
    stock = F.silu(F.batch_norm(y, *other_running, others[2], others[3], training))
    assert_same(ours, stock, inputs, others)
    for a, b in zip(running, other_running, strict=True):
        torch.testing.assert_close(a, b)
    if not training:
        with torch.no_grad():
            inference = functional.conv_bn_act(
                x, weight, *running, bn_weight, bn_bias, activation="silu", bias=bias, **options
            )
        assert relative_error(inference, stock) < 1e-12


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_bn_add_act(training: bool, with_residual: bool, target: str) -> None:
    inputs = leaves((3, 8, 5, 5), (8,), (8,), *([(3, 8, 5, 5)] if with_residual else []))
    others = [t.detach().clone().requires_grad_() for t in inputs]
    running, other_running = ([torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)] for _ in "ab")
    x, *rest = inputs
    ours = functional.bn_add_act(x, *running, *rest, training=training, activation="gelu")
    stock = F.batch_norm(others[0], *other_running, others[1], others[2], training)
    stock = F.gelu(stock + others[3] if with_residual else stock)
    assert_same(ours, stock, inputs, others)
    for a, b in zip(running, other_running, strict=True):
        torch.testing.assert_close(a, b)


def test_add_act(target: str) -> None:
    inputs = leaves((3, 8, 5, 5), (3, 8, 5, 5))
    others = [t.detach().clone().requires_grad_() for t in inputs]
    ours = functional.add_act(*inputs, "leaky_relu", negative_slope=0.3)
    assert_same(ours, F.leaky_relu(others[0] + others[1], 0.3), inputs, others)


def test_strided_1x1_of_few_channels(target: str) -> None:
    """Where oneDNN's weight gradient in channels_last writes out of bounds, sooner or later to be seen as a crash."""
    weight = torch.randn(12, 8, 1, 1, requires_grad=True)
    for _ in range(20):
        x = torch.randn(3, 8, 10, 9, requires_grad=True)
        ours = functional.conv_bn_act(x, weight, None, None, training=True, activation="silu", stride=2)
        stock = F.silu(F.batch_norm(F.conv2d(x, weight, stride=2), None, None, training=True))
        for a, b in zip(*(torch.autograd.grad((y**3).sum(), (x, weight)) for y in (ours, stock)), strict=True):
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(3, 65, 7, 5), (1, 1, 9, 123), (4, 123, 1, 1), (0, 3, 2, 2)], ids=str)
def test_batch_statistics(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> None:
    """A mean that dwarfs the deviation costs no more digits than it costs stock batch norm."""
    x = (torch.randn(shape) + 100.0).to(dtype).contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().requires_grad_()
    mean, var = functional.batch_statistics(x)
    assert mean.dtype == var.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (mean + var).square().sum().backward()
    if not x.numel():
        assert mean.tolist() == var.tolist() == [0.0] * shape[1]
        return
    exact_var, exact_mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    (exact_mean + exact_var).square().sum().backward()
    rounding = 1e-14 if dtype == torch.float64 else 1e-6
    assert relative_error(mean, exact_mean) < rounding and relative_error(var, exact_var) < 100 * rounding
    assert relative_error(x.grad, exact.grad) < (4e-3 if dtype == torch.bfloat16 else 100 * rounding)
    inputs = (torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True),)
    assert torch.autograd.gradcheck(functional.batch_statistics, inputs)


def test_without_running_statistics() -> None:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 4, 1, 1)
    out = functional.conv_bn_act(x, weight, None, None, training=True)
    torch.testing.assert_close(out, F.relu(F.batch_norm(F.conv2d(x, weight), None, None, training=True)))
    with pytest.raises(ValueError, match="expected tensors where training is False, got None"):
        functional.conv_bn_act(x, weight, None, None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "tanh"}, ValueError, "expected one of identity, relu, .*, got 'tanh'"),
        ({"eps": 0.0}, ValueError, "eps must be positive during training, but got 0.0"),
        ({"bn_weight": torch.ones(3)}, ValueError, r"bn.weight: expected shape \[4\], got \[3\]"),
        ({"stride": 0}, ValueError, r"stride: expected at least 1, got \(0, 0\)"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of the 4 output channels, got 3"),
        ({"x": torch.randn(1, 4, 1, 1)}, ValueError, "Expected more than 1 value per channel when training"),
    ],
    ids=["activation", "eps", "bn_weight", "stride", "groups", "one_value"],
)
def test_errors_leave_running_statistics(options: dict, error: type, message: str) -> None:
    arguments = {"x": torch.randn(2, 4, 5, 5), "weight": torch.randn(4, 4, 1, 1), "training": True} | options
    mean, var = torch.zeros(4), torch.ones(4)
    with pytest.raises(error, match=message):
        functional.conv_bn_act(running_mean=mean, running_var=var, **arguments)
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(var, torch.ones(4))


def test_a_residual_of_another_shape_leaves_running_statistics() -> None:
    mean, var = torch.zeros(4), torch.ones(4)
    with pytest.raises(ValueError, match=r"residual: expected shape \[2, 4, 5, 5\], got \[2, 4, 5, 4\]"):
        functional.bn_add_act(torch.randn(2, 4, 5, 5), mean, var, residual=torch.randn(2, 4, 5, 4), training=True)
    assert torch.equal(mean, torch.zeros(4))
