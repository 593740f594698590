"""bn_act_max_pool: forward, indices and every gradient, on every backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from support import stock_ops
from support.cases import LAYOUTS, assert_op_matches_stock, batch_norm, image

from fused_resnet import ops

# (N, C, H, W), kernel, stride, padding
CASES = {
    "stem": ((2, 64, 14, 14), 3, 2, 1),
    "odd": ((2, 7, 9, 12), 3, 2, 1),
    "tail": ((1, 65, 8, 8), 2, 2, 0),
    "overlapping": ((1, 19, 7, 7), 3, 1, 1),
    "gaps": ((2, 16, 11, 11), 2, 3, 0),
    "asymmetric": ((1, 3, 10, 6), (5, 1), (2, 3), (2, 0)),
    "window-larger-than-image": ((2, 8, 1, 1), 3, 2, 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_matches_stock(target: str, case: str, dtype: torch.dtype) -> None:
    shape, *geometry = CASES[case]
    args = (image(*shape, dtype=dtype), batch_norm(shape[1]), "relu", *geometry)
    assert_op_matches_stock(ops.bn_act_max_pool, stock_ops.bn_act_max_pool, args, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations_and_layouts(target: str, activation: str, layout: str) -> None:
    args = (image(2, 18, 9, 9, layout=layout), batch_norm(18), activation, 3, 2, 1)
    assert_op_matches_stock(ops.bn_act_max_pool, stock_ops.bn_act_max_pool, args, torch.float32)


@pytest.mark.parametrize("shape", [(2, 5, 9, 8), (3, 4, 1, 1), (2, 1, 5, 6), (1, 16, 2, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_that_of_x(target: str, layout: str, shape: tuple[int, ...]) -> None:
    x = image(*shape, layout=layout).requires_grad_()
    out = ops.bn_act_max_pool(x)
    (g_x,) = torch.autograd.grad(out.sum(), x)
    expected = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.is_contiguous(memory_format=expected) and g_x.is_contiguous(memory_format=expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_contiguous_matches_stock(target: str, case: str, dtype: torch.dtype) -> None:
    shape, *geometry = CASES[case]
    args = (image(*shape, dtype=dtype, layout="contiguous"), batch_norm(shape[1]), "relu", *geometry)
    assert_op_matches_stock(ops.bn_act_max_pool, stock_ops.bn_act_max_pool, args, dtype)


def test_without_batch_norm(target: str) -> None:
    args = (image(2, 18, 9, 9), None, "identity", 3, 2, 1)
    assert_op_matches_stock(ops.bn_act_max_pool, stock_ops.bn_act_max_pool, args, torch.float32)


def test_ties_infinities_and_nan_as_stock(target: str) -> None:
    """The first of equals and the last NaN of a window get the gradient."""
    x = torch.randint(0, 3, (2, 4, 9, 9)).float()
    x[0, 0, 2:5, 2:5] = float("nan")
    x[0, 1] = -float("inf")
    x.requires_grad_()
    out, want = ops.bn_act_max_pool(x, None, "identity"), torch.nn.functional.max_pool2d(x, 3, 2, 1)
    assert torch.equal(out.nan_to_num(nan=9.0), want.nan_to_num(nan=9.0))
    weights = torch.randn(out.shape)
    got, expected = (torch.autograd.grad(o, x, weights)[0] for o in (out, want))
    assert torch.allclose(got, expected)


def test_one_byte_is_saved_for_each_index(target: str) -> None:
    saved = []
    x = image(2, 8, 8, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.bn_act_max_pool(x)
    assert sum(t.nbytes for t in saved if t.shape != x.shape) == 2 * 8 * 4 * 4


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_gradcheck(target: str, activation: str) -> None:
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    vectors = [(torch.rand(2, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(4)]

    def op(x, *v):
        return ops.bn_act_max_pool(x, ops.BatchNorm(*v, 1e-5), activation)

    assert torch.autograd.gradcheck(op, (x, *vectors))


def test_empty_batch(target: str) -> None:
    x, bn = torch.randn(0, 5, 8, 8, requires_grad=True), batch_norm(5)
    vectors = [v.requires_grad_() for v in bn[:4]]
    out = ops.bn_act_max_pool(x, bn)
    assert out.shape == (0, 5, 4, 4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (x, *vectors)))


def test_double_backward_raises(target: str) -> None:
    x = image(1, 4, 6, 6).requires_grad_()
    (g,) = torch.autograd.grad(ops.bn_act_max_pool(x, None, "silu").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        g.sum().backward()


def test_opcheck(target: str) -> None:
    vectors = [v.requires_grad_() for v in batch_norm(6)[:4]]
    args = (image(2, 6, 9, 8).requires_grad_(), *vectors, 1e-5, "relu", 0.01, (3, 3), (2, 2), (1, 1))
    torch.library.opcheck(torch.ops.fused_resnet.bn_act_max_pool.default, args)
