"""torch.compile without graph breaks and torch.export give what eager mode gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.oracle import relative_error
from support.parity import assert_buffers_match, randomise_batch_norms
from torch import nn

import fused_resnet
from fused_resnet.nn import BasicBlock, BNAddAct2d, Bottleneck, ConvBNAct2d

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "basic": lambda: BasicBlock(16, 16),
    "bottleneck_cumulative": lambda: cumulative(Bottleneck(16, 4)),
    "conv_bn_act": lambda: ConvBNAct2d(16, 8),
    "bn_add_act": lambda: BNAddAct2d(16),
    "frozen": lambda: fused(torchvision.models.resnet.BasicBlock(16, 16, norm_layer=torchvision.ops.FrozenBatchNorm2d)),
    "torchvision": lambda: fused(torchvision.models.resnet.Bottleneck(16, 4)),
    "sequential": lambda: fused(nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.MaxPool2d(2))),
}


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch._dynamo.reset()  # all blocks share one forward, and the limit of recompilations is the process's


def fused(model: nn.Module) -> nn.Module:
    fused_resnet.fuse(model)
    return model


def cumulative(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    return model


def assert_compiles(model: nn.Module, x: torch.Tensor, backend: str, tolerance: float) -> None:
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(2):
        got, want = compiled(x), eager(x)
        assert relative_error(got, want) <= tolerance
        F.mse_loss(got, torch.ones_like(got)).backward()
        F.mse_loss(want, torch.ones_like(want)).backward()
    for (name, a), b in zip(model.named_parameters(), eager.parameters(), strict=True):
        assert relative_error(a.grad, b.grad) <= tolerance, name
    assert_buffers_match(model, eager)
    with torch.no_grad():
        assert relative_error(torch.compile(model.eval(), fullgraph=True, backend=backend)(x), eager.eval()(x)) <= 1e-5


@pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_block(make: object, training: bool) -> None:
    model = randomise_batch_norms(make()).train(training)
    assert_compiles(model, torch.randn(2, 16, 8, 8), "aot_eager", 1e-6)


def test_resnet18() -> None:
    model = fused(torchvision.models.resnet18(num_classes=10))
    assert_compiles(model, torch.randn(4, 3, 32, 32), "aot_eager", 1e-5)


def test_inductor() -> None:
    assert_compiles(Bottleneck(16, 4), torch.randn(2, 16, 8, 8), "inductor", 1e-4)


def test_dynamic_batch_size() -> None:
    model = randomise_batch_norms(BasicBlock(16, 16))
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 16, 8, 8)
        assert relative_error(compiled(x), eager(x)) <= 1e-6
    assert_buffers_match(model, eager)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_export(training: bool) -> None:
    model = fused(torchvision.models.resnet18(num_classes=10)).train(training)
    eager = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,))
    assert any("fused_resnet" in str(node.target) for node in program.graph.nodes)
    assert program.state_dict.keys() == model.state_dict().keys()
    exported = program.module()
    assert relative_error(exported(x), eager(x)) <= 1e-5
    assert_buffers_match(exported, eager)


def test_unfused_export_holds_stock_ops_alone() -> None:
    model = fused(torchvision.models.resnet18(num_classes=10)).eval()
    fused_resnet.unfuse(model)
    program = torch.export.export(model, (torch.randn(2, 3, 32, 32),))
    assert not any("fused_resnet" in str(node.target) for node in program.graph.nodes)


def test_class_change_after_compiling_is_seen() -> None:
    model = torchvision.models.resnet.BasicBlock(16, 16).eval()
    x = torch.randn(2, 16, 8, 8)
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(model, backend=keep)
    want = compiled(x)
    report = fused_resnet.fuse(compiled)
    assert [entry.name for entry in report.fused] == ["_orig_mod"]
    torch.testing.assert_close(compiled(x), want)
    fused_resnet.unfuse(compiled)
    torch.testing.assert_close(compiled(x), want)
    assert ["fused_resnet" in code for code in graphs] == [False, True]
