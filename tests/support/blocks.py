"""Residual blocks in training, and a step of one: what is computed by blocks as one node is held against ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.oracle import relative_error
from support.parity import randomise_batch_norms
from torch import Tensor, nn

from fused_resnet.nn import BasicBlock, Bottleneck

__all__ = ["BLOCKS", "C", "assert_same", "block", "image", "is_one_node", "step"]

C = 32


def projection(c: int, k: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: BasicBlock(C, C),
    "basic_projection": lambda: BasicBlock(C, 40, 2, projection(C, 40, 2)),
    "bottleneck": lambda: Bottleneck(C, C // 4),
    "bottleneck_projection": lambda: Bottleneck(C, 12, 2, projection(C, 48, 2)),
    "grouped": lambda: Bottleneck(C, C // 4, groups=4, base_width=64),
    "wide_channels": lambda: Bottleneck(512, 17, 1, projection(512, 68, 1)),  # rows that alias in the caches
}


def block(name: str = "bottleneck", activation: nn.Module | None = None) -> nn.Module:
    made = randomise_batch_norms(BLOCKS[name]()).train()
    if activation is not None:
        made.relu = activation
    return made


def image(model: nn.Module, n: int = 3, h: int = 9, w: int = 8) -> Tensor:
    weight = model.conv1.weight
    x = torch.randn(n, weight.shape[1], h, w, dtype=weight.dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def is_one_node(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "ResidualBlockFunctionBackward"


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Everything that a forward and a backward make."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return {"out": out, "x": x.grad, **gradients, **buffers}


def assert_same(ours: dict[str, Tensor], ops: dict[str, Tensor]) -> None:
    """The output to the bit; the tail's gradient is scaled where it is read, instead of rounded in between."""
    assert torch.equal(ours["out"], ops["out"])
    for name, want in ops.items():
        assert ours[name].dtype == want.dtype and ours[name].stride() == want.stride()
        allowed = 1e-13 if want.dtype == torch.float64 else 1e-5
        assert relative_error(ours[name], want) <= allowed, name
