"""bn_add_act: forward and every gradient, on every backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from support import stock_ops
from support.cases import LAYOUTS, assert_op_matches_stock, batch_norm, image

from fused_resnet import ops

SHAPES = [(2, 64, 14, 14), (1, 1, 7, 5), (3, 7, 9, 4), (2, 65, 3, 3), (4, 123, 1, 1), (1, 16, 89, 93)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_stock(target: str, shape: tuple, layout: str, dtype: torch.dtype) -> None:
    x, residual = image(*shape, layout=layout, dtype=dtype), image(*shape, layout=layout, dtype=dtype)
    args = (x, batch_norm(shape[1]), residual, batch_norm(shape[1]), "relu")
    assert_op_matches_stock(ops.bn_add_act, stock_ops.bn_add_act, args, dtype)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("parts", ["bn", "residual", "bn+residual", "bn+residual+bn", "residual+bn", "none"])
def test_parts_and_activations(target: str, parts: str, dtype: torch.dtype, activation: str) -> None:
    bn = batch_norm(19) if parts.startswith("bn") else None
    residual = image(2, 19, 6, 5, dtype=dtype) if "residual" in parts else None
    residual_bn = batch_norm(19) if parts.endswith("residual+bn") else None
    args = (image(2, 19, 6, 5, dtype=dtype), bn, residual, residual_bn, activation)
    assert_op_matches_stock(ops.bn_add_act, stock_ops.bn_add_act, args, dtype)


def test_leaky_relu_slope(target: str) -> None:
    x = image(2, 8, 4, 4)
    assert torch.equal(
        ops.bn_add_act(x, activation="leaky_relu", negative_slope=0.3), torch.nn.functional.leaky_relu(x, 0.3)
    )


def test_mixed_layouts(target: str) -> None:
    x, residual = image(2, 8, 5, 6), image(2, 8, 5, 6, layout="contiguous")
    out = ops.bn_add_act(x, None, residual)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, (x + residual).relu())


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "hardswish"])
def test_special_values(target: str, activation: str) -> None:
    """Kinks, infinities and NaN, forward and backward, as PyTorch."""
    values = [-6.0, -3.0, -0.5, 0.0, 3.0, 6.0, 7.0, float("inf"), float("nan")]
    x = torch.tensor(values).repeat(3)[None, None, None].expand(1, 4, 1, 27).contiguous().requires_grad_()
    out = ops.bn_add_act(x, activation=activation)
    want = stock_ops.activate(x, activation)
    assert torch.allclose(out, want, rtol=1e-6, atol=0, equal_nan=True)
    # PyTorch's own scalar and vector code disagree on the gradient of hardswish at NaN.
    got, expected = (torch.autograd.grad(o.nan_to_num().sum(), x)[0][~x.isnan()] for o in (out, want))
    assert torch.allclose(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_survives(target: str, dtype: torch.dtype) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    out = ops.bn_add_act(x, activation="identity")
    assert torch.equal(out.nan_to_num(nan=7.0), x.nan_to_num(nan=7.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_to_nearest_even(target: str, dtype: torch.dtype) -> None:
    """x + residual lands between two values of the type, on ties, in the subnormals and beyond the largest."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    for shift in (1.0, 2.0**-8, 2.0**-12, 2.0**-25, 3e4):
        residual = torch.full_like(x, shift)
        out, want = ops.bn_add_act(x, None, residual, activation="identity"), (x.float() + residual.float()).to(dtype)
        assert torch.equal(out.nan_to_num(nan=7.0), want.nan_to_num(nan=7.0))


def test_large_mean_gradients(target: str) -> None:
    """The sum of p (x - mean) is centred: a mean 300 times the deviation costs no digits."""
    x = image(8, 16, 8, 8) * 0.01 + 3
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    args = (x, ops.BatchNorm(mean, var, torch.ones(16), torch.zeros(16), 1e-5), image(8, 16, 8, 8), None, "relu")
    assert_op_matches_stock(ops.bn_add_act, stock_ops.bn_add_act, args, torch.float32)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradcheck(target: str, activation: str) -> None:
    tensors = [torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    vectors = [(torch.rand(3, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(8)]

    def op(x, residual, *v):
        return ops.bn_add_act(x, ops.BatchNorm(*v[:4], 1e-5), residual, ops.BatchNorm(*v[4:], 1e-3), activation)

    assert torch.autograd.gradcheck(op, (*tensors, *vectors))


def test_saves_one_tensor_without_a_norm(target: str) -> None:
    saved = []
    x, residual = image(2, 8, 4, 4).requires_grad_(), image(2, 8, 4, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.bn_add_act(x, None, residual)
    assert [t.shape for t in saved] == [x.shape]


def test_empty_batch(target: str) -> None:
    x, bn = torch.randn(0, 5, 3, 3, requires_grad=True), batch_norm(5)
    vectors = [v.requires_grad_() for v in bn[:4]]
    out = ops.bn_add_act(x, bn, x)
    assert out.shape == x.shape
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (x, *vectors)))


def test_double_backward_raises(target: str) -> None:
    x = image(1, 4, 3, 3).requires_grad_()
    (g,) = torch.autograd.grad(ops.bn_add_act(x, batch_norm(4), x, activation="silu").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        g.sum().backward()


def test_same_bits_every_time(target: str) -> None:
    x, bn = image(4, 33, 40, 41), batch_norm(33)
    vectors = [v.requires_grad_() for v in bn[:4]]
    first = torch.autograd.grad(ops.bn_add_act(x, bn).square().sum(), vectors)
    for _ in range(5):
        again = torch.autograd.grad(ops.bn_add_act(x, bn).square().sum(), vectors)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("dual", [True, False])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_opcheck(target: str, dual: bool, layout: str) -> None:
    x, residual = (image(2, 6, 4, 5, layout=layout).requires_grad_() for _ in range(2))
    norms = [(*(v.requires_grad_() for v in batch_norm(6)[:4]), 1e-5) for _ in range(2)]
    residual_args = (residual, *norms[1]) if dual else (None, None, None, None, None, 0.0)
    torch.library.opcheck(torch.ops.fused_resnet.bn_add_act.default, (x, *norms[0], *residual_args, "silu", 0.01))
