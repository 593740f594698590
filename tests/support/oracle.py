"""The oracle: fused, stock in float32 and stock in float64 compute the same, and the errors of the first two compare."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused_resnet

__all__ = ["assert_close_three_way", "assert_parity", "relative_error", "stock_twin", "training_step"]


def relative_error(a: Tensor, ref64: Tensor) -> float:
    """Root mean square of ``a - ref64`` over that of ``ref64``; not relative where ``ref64`` is all zeros."""
    ref64 = ref64.double()
    scale = ref64.norm()
    return ((a.double() - ref64).norm() / (scale if scale > 0 else 1.0)).item()


def assert_close_three_way(
    ours: Tensor, stock: Tensor, ref64: Tensor, factor: float = 2.0, atol: float = 1e-6, name: str = "tensor"
) -> None:
    """``error(ours) <= factor * error(stock) + atol``, both against ``ref64``."""
    assert ours.shape == ref64.shape, f"{name}: expected shape {list(ref64.shape)}, got {list(ours.shape)}"
    ours_error, stock_error = relative_error(ours, ref64), relative_error(stock, ref64)
    assert ours_error <= factor * stock_error + atol, f"{name}: error {ours_error:.3g}, stock has {stock_error:.3g}"


def stock_twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain PyTorch."""
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    return twin


def training_step(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Output, loss, gradients and buffers of one step, by name."""
    output = model(x)
    loss = F.cross_entropy(output, target)
    loss.backward()
    tensors = {"output": output.detach(), "loss": loss.detach()}
    tensors |= {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return tensors | {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_parity(model: nn.Module, step: Callable[[nn.Module, torch.dtype], dict[str, Tensor]]) -> None:
    """What ``step(model, dtype)`` returns must be as near to float64 for the fused ``model`` as for its stock twin."""
    twin = stock_twin(model)
    reference = step(copy.deepcopy(twin).double(), torch.float64)
    stock = step(twin, torch.float32)
    ours = step(model, torch.float32)
    assert ours.keys() == stock.keys() == reference.keys()
    for name, want in reference.items():
        if want.is_floating_point():
            assert_close_three_way(ours[name], stock[name], want, name=name)
        else:
            assert torch.equal(ours[name], want), f"{name}: expected {want}, got {ours[name]}"
