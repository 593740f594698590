"""torchvision beyond its ResNet classifiers: RegNet, detectors with frozen norms, quantizable models."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torchvision
from support.oracle import relative_error
from support.parity import randomise_batch_norms
from support.timm_models import check_model
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import fused_resnet

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fused_resnet runs on the reference path"),
]


@pytest.mark.parametrize("name", ["regnet_x_400mf", "regnet_y_400mf"])
def test_regnet(name: str) -> None:
    model = randomise_batch_norms(torchvision.models.get_model(name, num_classes=5)).double()
    outcome = check_model(name, model, torch.randn(2, 3, 64, 64, dtype=torch.float64))
    blocks = sum(type(m).__name__ == "ResBottleneckBlock" for m in model.modules())
    assert (outcome.fused, outcome.skipped) == (blocks + 1, 0)  # and the stem


@pytest.mark.parametrize("norm", [torchvision.ops.FrozenBatchNorm2d, nn.BatchNorm2d])
def test_feature_pyramid_of_a_detector(norm: type[nn.Module]) -> None:
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=5)
    for module in backbone.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    stock = randomise_batch_norms(backbone).double().train()
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert len(report.fused) == 9 and report.skipped == []  # the stem and eight blocks
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for m in (model, stock):
        features = m(x)
        sum(f.square().sum() for f in features.values()).backward()
        results.append([*features.values(), *(p.grad for p in m.parameters()), *m.buffers()])
    for got, want in zip(*results, strict=True):
        assert relative_error(got.detach(), want.detach()) < 1e-7


def losses(model: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)  # proposals are drawn
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 50.0]], dtype=torch.float64)
    found = model(images, [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images])
    sum(found.values()).backward()
    return found


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2"])
def test_detector(name: str) -> None:
    options = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64, "num_classes": 3}
    if "faster" in name:
        options |= {"rpn_post_nms_top_n_train": 40, "box_batch_size_per_image": 8}
    stock = torchvision.models.get_model(name, **options).double().train()
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert sum(entry.class_name == "Bottleneck" for entry in report.fused) == 16
    assert any(entry.name == "backbone.body" for entry in report.fused)
    images = [torch.rand(3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    got, want = losses(model, images), losses(stock, images)
    assert got.keys() == want.keys()
    for key in want:
        assert relative_error(got[key].detach(), want[key].detach()) < 1e-6, key
    for (key, p), q in zip(model.named_parameters(), stock.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        assert p.grad is None or relative_error(p.grad, q.grad, 1e-9) < 1e-5, key


def test_quantizable_models_are_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = torchvision.models.quantization.resnet18(weights=None, quantize=False, num_classes=5).eval()
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert [(e.name, e.class_name) for e in report.skipped] == [("", "QuantizableResNet")]
    assert not report.fused and not report.partial
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    model.fuse_model(is_qat=False)  # torchvision's own, which needs its own classes and layers
    assert sum(type(m).__name__ == "ConvReLU2d" for m in model.modules()) == 9
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(model(x), stock(x)) < 1e-5
