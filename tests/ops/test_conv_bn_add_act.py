"""conv_bn_add_act: the inference op, on every backend and instruction set."""

from __future__ import annotations

import pytest
import torch
from support import stock_ops
from support.cases import LAYOUTS, TOLERANCE, batch_norm, image
from support.oracle import assert_close_three_way

from fused_resnet import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ["relu", "identity", "gelu"])
def test_matches_stock(target: str, activation: str, residual: bool, layout: str, dtype: torch.dtype) -> None:
    x, weight = image(2, 19, 9, 8, layout=layout, dtype=dtype), torch.randn(33, 19, 3, 3, dtype=dtype) * 0.08
    r = image(2, 33, 5, 4, layout=layout, dtype=dtype) if residual else None
    bn, geometry = batch_norm(33), (2, 1)
    ours = ops.conv_bn_add_act(x, weight, bn, r, activation, *geometry)
    stock = stock_ops.conv_bn_add_act(x, weight, bn, r, activation, *geometry)
    wide = [None if t is None else t.double() for t in (x, weight, r)]
    bn64 = ops.BatchNorm(*(v.double() for v in bn[:4]), bn.eps)
    ref = stock_ops.conv_bn_add_act(wide[0], wide[1], bn64, wide[2], activation, *geometry)
    assert ours.dtype == dtype and ours.is_contiguous(memory_format=torch.channels_last)
    assert_close_three_way(ours, stock, ref, atol=TOLERANCE[dtype])


def test_raises_where_a_gradient_is_needed(target: str) -> None:
    weight = torch.randn(4, 3, 1, 1, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no gradient.*no_grad"):
        ops.conv_bn_add_act(image(1, 3, 4, 4), weight)
    with torch.no_grad():
        assert ops.conv_bn_add_act(image(1, 3, 4, 4), weight).shape == (1, 4, 4, 4)


def test_opcheck(target: str) -> None:
    args = (image(2, 6, 9, 8), torch.randn(4, 6, 3, 3), None, *batch_norm(4), image(2, 4, 9, 8), "relu", 0.01)
    op = torch.ops.fused_resnet.conv_bn_add_act.default
    with torch.no_grad():
        torch.library.opcheck(
            op,
            (*args, (1, 1), (1, 1), (1, 1), 1),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )
