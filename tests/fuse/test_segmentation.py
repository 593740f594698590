"""FCN and DeepLabV3 on dilated backbones, fused, against float64."""

from __future__ import annotations

import pytest
import torch
import torchvision
from support.parity import assert_parity, results, smooth
from torch import Tensor, nn

import fused_resnet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_parity(name: str, mode: str) -> None:
    model = torchvision.models.get_model(name, weights_backbone=None, aux_loss=True, num_classes=4)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.ReLU):
            model.set_submodule(path, nn.SiLU())
    model.backbone.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    fused_resnet.fuse(model)
    x = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(x)
    model.train(mode == "train")

    def step(model: nn.Module) -> dict[str, Tensor]:
        outputs = model(x.to(next(model.parameters()).dtype))
        weight = torch.linspace(-1, 1, outputs["out"].numel()).view(outputs["out"].shape)
        sum((output * weight.to(output.dtype)).sum() for output in outputs.values()).backward()
        return results(model, {"output": outputs["out"], "aux": outputs["aux"]})

    assert_parity(smooth(model), step)
