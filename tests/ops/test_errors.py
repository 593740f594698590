"""Bad input: one clear error with what was expected and what came, the same on every backend."""

from __future__ import annotations

import pytest
import torch
from support.cases import batch_norm, image

from fused_resnet import ops

X, W = image(2, 8, 6, 6), torch.randn(16, 8, 3, 3)
BN = batch_norm(8)

CONV = {
    "rank": (TypeError, r"expected a tensor, got int", lambda: ops.bn_act_conv(1, None, "relu", W)),
    "three-dimensions": (
        ValueError,
        r"4 dimensions.*got 3: \[8, 6, 6\]",
        lambda: ops.bn_act_conv(X[0], None, "relu", W),
    ),
    "integers": (TypeError, r"float32 or .*got torch.int64", lambda: ops.bn_act_conv(X.long(), None, "relu", W)),
    "channels": (
        ValueError,
        r"expected 4 x 1 groups = 4 input channels, got x with 8",
        lambda: ops.bn_act_conv(X, None, "relu", W[:, :4]),
    ),
    "dtype-mix": (
        TypeError,
        r"weight: expected torch.float32.*float64",
        lambda: ops.bn_act_conv(X, None, "relu", W.double()),
    ),
    "device-mix": (
        ValueError,
        r"expected device cpu.*got meta",
        lambda: ops.bn_act_conv(X, None, "relu", W.to("meta")),
    ),
    "groups": (
        ValueError,
        r"groups: expected a divisor of the 16.*got 3",
        lambda: ops.bn_act_conv(X, None, "relu", W, groups=3),
    ),
    "zero-groups": (ValueError, r"groups: .*got 0", lambda: ops.bn_act_conv(X, None, "relu", W, groups=0)),
    "zero-stride": (
        ValueError,
        r"stride: expected at least 1, got \(0, 0\)",
        lambda: ops.bn_act_conv(X, None, "relu", W, 0),
    ),
    "negative-stride": (ValueError, r"stride: .*got \(1, -2\)", lambda: ops.bn_act_conv(X, None, "relu", W, (1, -2))),
    "negative-padding": (
        ValueError,
        r"padding: expected at least 0",
        lambda: ops.bn_act_conv(X, None, "relu", W, 1, -1),
    ),
    "float-stride": (
        TypeError,
        r"stride: expected an int or two, got 1.5",
        lambda: ops.bn_act_conv(X, None, "relu", W, 1.5),
    ),
    "kernel": (
        ValueError,
        r"kernel within the padded input \[6, 6\], got \[7, 7\]",
        lambda: ops.bn_act_conv(X, None, "relu", W, dilation=3),
    ),
    "bias": (
        ValueError,
        r"bias: expected shape \[16\], got \[8\]",
        lambda: ops.bn_act_conv(X, None, "relu", W, bias=torch.ones(8)),
    ),
    "activation": (
        ValueError,
        r"expected one of identity, relu, .*got 'swish'",
        lambda: ops.bn_act_conv(X, None, "swish", W),
    ),
    "bn-shape": (
        ValueError,
        r"bn.weight: expected shape \[8\], got \[7\]",
        lambda: ops.bn_act_conv(X, BN._replace(weight=torch.ones(7)), "relu", W),
    ),
    "bn-eps": (ValueError, r"bn.eps: .*got -1", lambda: ops.bn_act_conv(X, BN._replace(eps=-1.0), "relu", W)),
    "bn-no-var": (
        ValueError,
        r"bn.var: expected a tensor",
        lambda: ops.bn_act_conv(X, BN._replace(var=None), "relu", W),
    ),
    "bn-integers": (
        TypeError,
        r"bn.mean: expected a floating type",
        lambda: ops.bn_act_conv(X, BN._replace(mean=torch.ones(8, dtype=torch.long)), "relu", W),
    ),
}

OTHERS = {
    "residual-shape": (
        ValueError,
        r"residual: expected shape \[2, 8, 6, 6\], got \[2, 8, 1, 1\]",
        lambda: ops.bn_add_act(X, None, X[:, :, :1, :1]),
    ),
    "residual-rank": (ValueError, r"residual: expected 4 dimensions", lambda: ops.bn_add_act(X, None, X[0])),
    "residual-dtype": (TypeError, r"residual: expected torch.float32", lambda: ops.bn_add_act(X, None, X.half())),
    "residual-bn-alone": (ValueError, r"residual_bn: expected None", lambda: ops.bn_add_act(X, None, None, BN)),
    "pool-window": (
        ValueError,
        r"window within the padded input",
        lambda: ops.bn_act_max_pool(X, kernel_size=9, padding=0),
    ),
    "pool-padding": (ValueError, r"at most half of kernel_size", lambda: ops.bn_act_max_pool(X, padding=2)),
    "pool-stride": (ValueError, r"stride: expected at least 1", lambda: ops.bn_act_max_pool(X, stride=0)),
    "pool-positions": (
        ValueError,
        r"at most 256 positions",
        lambda: ops.bn_act_max_pool(image(1, 1, 20, 20), kernel_size=17, padding=0),
    ),
    "infer-residual": (
        ValueError,
        r"residual: expected shape \[2, 16, 4, 4\], got \[2, 8, 6, 6\]",
        lambda: ops.conv_bn_add_act(X, W, None, X),
    ),
    "infer-bn": (ValueError, r"bn.mean: expected shape \[16\], got \[8\]", lambda: ops.conv_bn_add_act(X, W, BN)),
}


@pytest.mark.parametrize("case", CONV | OTHERS)
def test_says_what_was_expected_and_what_came(target: str, case: str) -> None:
    error, message, call = (CONV | OTHERS)[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
