"""Chains: runs of convolution, batch norm, activation and max pool inside any sequence of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.parity import assert_parity, randomise_batch_norms, weighted_sum, with_inference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fused_resnet
from fused_resnet.nn import BasicBlock, Bottleneck

pytestmark = pytest.mark.usefixtures("one_thread")


def conv_bn(inputs: int = 16, outputs: int = 16, **options: object) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs)]


CHAINS = {
    "stem": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), nn.MaxPool2d(3, 2, 1)),
    "pool_without_activation": lambda: nn.Sequential(*conv_bn(), nn.MaxPool2d(2)),
    "pool_of_stride_1": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), nn.MaxPool2d((3, 2), stride=1, padding=(1, 0))),
    "two_runs": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), *conv_bn(bias=True), nn.GELU()),
    "run_without_activation": lambda: nn.Sequential(*conv_bn(), *conv_bn()),
    "average_pool_after": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), nn.AvgPool2d(2)),
    "in_place_after": lambda: nn.Sequential(*conv_bn(), nn.Hardtanh(-9.0, 9.0, inplace=True)),
    "lone_convolutions": lambda: nn.Sequential(nn.Conv2d(16, 16, 1), *conv_bn(), nn.SiLU(), nn.Conv2d(16, 16, 1)),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm2d(16), nn.SiLU(), *conv_bn()),
    "dilated_pool": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), nn.MaxPool2d(2, dilation=2)),
    "head": lambda: nn.Sequential(*conv_bn(), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
}


@pytest.mark.parametrize("make", CHAINS.values(), ids=list(CHAINS))
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_parity(make: object, mode: str, target: str) -> None:
    model = randomise_batch_norms(make())
    report = fused_resnet.fuse(model)
    assert len(report.fused) == 1
    model.train(mode == "train")
    x = torch.randn(3, 16, 8, 8)

    assert_parity(model, with_inference(weighted_sum(x), x))


def test_a_layer_used_twice_is_called_twice() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(shared, *conv_bn(), shared, nn.Conv2d(16, 16, 1), shared).eval()
    x = torch.randn(1, 16, 4, 4)
    want = model(x)
    fused_resnet.fuse(model)
    torch.testing.assert_close(model(x), want)
    assert (model(x) >= 0).all()


class OpNames(TorchDispatchMode):
    """Notes the ops of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if op.namespace == "fused_resnet":
            self.seen.append(op._opname)
        return op(*args, **(kwargs or {}))


BLOCK = ["bn_act_conv"] * 3 + ["bn_add_act"]
INFERENCE = ["conv_bn_add_act"] * 3


@pytest.mark.parametrize(
    ("make", "training", "calls"),
    [
        (CHAINS["two_runs"], True, ["bn_act_conv", "bn_act_conv", "bn_add_act"]),
        (CHAINS["two_runs"], False, ["conv_bn_add_act", "conv_bn_add_act"]),
        (CHAINS["stem"], True, ["bn_act_conv", "bn_act_max_pool"]),
        (CHAINS["stem"], False, ["bn_act_conv", "bn_act_max_pool"]),
        (lambda: Bottleneck(16, 4), True, BLOCK),
        (lambda: Bottleneck(16, 4), False, INFERENCE),
        (lambda: BasicBlock(16, 8, 1, nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))), True, BLOCK),
        (lambda: BasicBlock(16, 8, 1, nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))), False, INFERENCE),
    ],
    ids=[f"{name}-{mode}" for name in ("two_runs", "stem", "block", "projection") for mode in ("train", "infer")],
)
def test_raw_outputs_are_handed_on(make: object, training: bool, calls: list[str]) -> None:
    """Norms and activations cost no op of their own: only the end of a block or run is written out."""
    model = make().train(training)
    fused_resnet.fuse(model)
    with torch.set_grad_enabled(training), OpNames() as names:
        model(torch.randn(2, 16, 8, 8))
    assert names.seen == calls
