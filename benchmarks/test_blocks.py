"""Residual blocks of ResNet-50 and ResNet-34 in training, forward and backward: fused against stock, channels_last."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from resnet_shapes import image
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

import fused_resnet

# block, input channels, planes, pixels, stride
BLOCKS = {
    "basic-layer1": (BasicBlock, 64, 64, 56, 1),
    "basic-layer2-down": (BasicBlock, 64, 128, 56, 2),
    "basic-layer4": (BasicBlock, 512, 512, 7, 1),
    "bottleneck-layer1": (Bottleneck, 256, 64, 56, 1),
    "bottleneck-layer2-down": (Bottleneck, 256, 128, 56, 2),
    "bottleneck-layer3": (Bottleneck, 1024, 256, 14, 1),
    "bottleneck-layer4": (Bottleneck, 2048, 512, 7, 1),
}


@pytest.mark.parametrize("variant", ["fused", "stock"])
@pytest.mark.parametrize("name", BLOCKS)
def test_training_step(measure: Callable[..., None], name: str, variant: str) -> None:
    """One forward and one backward; bytes: the block's input and output and their gradients, once each."""
    kind, channels, planes, size, stride = BLOCKS[name]
    wide = planes * kind.expansion
    down = None
    if stride != 1 or channels != wide:
        down = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    block = kind(channels, planes, stride, down).train().to(memory_format=torch.channels_last)
    x = image(8, channels, size, size).requires_grad_()
    stock = copy.deepcopy(block)
    fused_resnet.fuse(block)
    with torch.no_grad():
        out = stock(x)
        assert torch.allclose(copy.deepcopy(block)(x), out, atol=1e-4)
    g = torch.randn_like(out)
    model = block if variant == "fused" else stock

    def step() -> None:
        model.zero_grad()
        model(x).backward(g)

    measure(step, f"training step {name}", 2 * (x.nbytes + out.nbytes))
