"""Every model, in training and evaluation: output, loss, gradients and running statistics against float64."""

from __future__ import annotations

import pytest
import torch
from support.parity import assert_parity, classify, smooth
from torch import nn

from fused_resnet import models

SHALLOW = ("resnet18", "resnet50", "resnext50_32x4d", "resnet20")


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))


def with_running_statistics(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """``model`` in evaluation, its running statistics those of ``x``."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", models.names())
def test_smooth_model(name: str, mode: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = smooth(models.create_model(f"fused_resnet:{name}", num_classes=10))
    if mode == "eval":
        with_running_statistics(model, batch[0])
    assert_parity(model, classify(*batch))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", SHALLOW)
def test_relu_model(name: str, mode: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """As they are: all but the gradients is continuous; those may differ where a ReLU or max pool changes its side."""
    model = models.create_model(f"fused_resnet:{name}", num_classes=10)
    if mode == "eval":
        with_running_statistics(model, batch[0])
    assert_parity(model, classify(*batch), gradient_atol=3e-2)


@pytest.mark.parametrize("name", models.names())
def test_inference(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = with_running_statistics(models.create_model(f"fused_resnet:{name}", num_classes=10), batch[0])

    def step(model: nn.Module) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"output": model(batch[0].to(next(model.parameters()).dtype))}

    assert_parity(model, step)
