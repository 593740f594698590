"""Each op against the stock layers it stands for: forward, and backward alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resnet_shapes import STAGES, image
from torch import Tensor

from fused_resnet import ops

VARIANTS = ("fused", "stock")


def _vectors(channels: int) -> list[Tensor]:
    """mean, var, weight, bias"""
    mean, var, weight, bias = (
        torch.randn(channels),
        torch.rand(channels) + 0.5,
        torch.ones(channels),
        torch.zeros(channels),
    )
    return [mean, var, weight.requires_grad_(), bias.requires_grad_()]


def _backward(out: Tensor, inputs: list[Tensor]) -> Any:
    g = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, g, retain_graph=True)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bn_add_act(measure: Callable[..., None], direction: str, stage: str, variant: str) -> None:
    """Statistics given: stock is batch norm in evaluation, add, ReLU in place."""
    shape = STAGES[stage]
    x, residual = image(*shape).requires_grad_(), image(*shape).requires_grad_()
    mean, var, weight, bias = _vectors(shape[1])

    def fused() -> Tensor:
        return ops.bn_add_act(x, ops.BatchNorm(mean, var, weight, bias, 1e-5), residual)

    def stock() -> Tensor:
        return F.relu_(F.batch_norm(x, mean, var, weight, bias) + residual)

    function = fused if variant == "fused" else stock
    group = f"bn_add_act {direction} {stage}"
    if direction == "forward":
        measure(function, group, 3 * x.nbytes)
    else:
        measure(_backward(function(), [x, residual, weight, bias]), group, 5 * x.nbytes)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bn_act_max_pool(measure: Callable[..., None], direction: str, variant: str) -> None:
    """Statistics given: stock is batch norm in evaluation, ReLU in place, max pool."""
    shape = STAGES["stem"]
    x = image(*shape).requires_grad_()
    mean, var, weight, bias = _vectors(shape[1])

    def fused() -> Tensor:
        return ops.bn_act_max_pool(x, ops.BatchNorm(mean, var, weight, bias, 1e-5))

    def stock() -> Tensor:
        return F.max_pool2d(F.relu_(F.batch_norm(x, mean, var, weight, bias)), 3, 2, 1)

    function = fused if variant == "fused" else stock
    group = f"bn_act_max_pool {direction} stem"
    small = x.nbytes // 4
    if direction == "forward":
        measure(function, group, x.nbytes + small + small // 4)
    else:
        measure(_backward(function(), [x, weight, bias]), group, 2 * x.nbytes + small + small // 4)


# C, H, K, kernel, stride: convolutions of ResNet-50
CONVS = {
    "layer1-1x1-reduce": (256, 56, 64, 1, 1),
    "layer1-3x3": (64, 56, 64, 3, 1),
    "layer1-1x1-expand": (64, 56, 256, 1, 1),
    "layer2-3x3-stride2": (128, 56, 128, 3, 2),
    "layer3-3x3": (256, 14, 256, 3, 1),
    "layer4-1x1-expand": (512, 7, 2048, 1, 1),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_bn_act_conv(measure: Callable[..., None], direction: str, conv: str, variant: str) -> None:
    """Both normalise, activate, convolve and take one set of statistics: fused of its output, stock of its input."""
    c, size, k, kernel, stride = CONVS[conv]
    x = image(8, c, size, size).requires_grad_()
    weight = (torch.randn(k, c, kernel, kernel) * (2 / (c * kernel**2)) ** 0.5).requires_grad_()
    mean, var, gamma, beta = _vectors(c)
    geometry = (stride, kernel // 2)

    def fused() -> tuple[Tensor, ...]:
        norm = ops.BatchNorm(mean.requires_grad_(), var.requires_grad_(), gamma, beta, 1e-5)
        return ops.bn_act_conv(x, norm, "relu", weight, *geometry)

    def stock() -> tuple[Tensor, ...]:
        return (F.conv2d(F.relu_(F.batch_norm(x, None, None, gamma, beta, training=True)), weight, None, *geometry),)

    function = fused if variant == "fused" else stock
    group = f"bn_act_conv {direction} {conv}"
    outputs = function()
    y = outputs[0]
    if direction == "forward":
        measure(function, group, x.nbytes + y.nbytes + weight.nbytes)
    else:
        inputs = [x, weight, gamma, beta, *([mean, var] if variant == "fused" else [])]
        grads = [torch.randn_like(o) for o in outputs]
        least = 2 * (x.nbytes + y.nbytes + weight.nbytes)
        measure(lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True), group, least)
