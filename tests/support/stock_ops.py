"""The ops in stock PyTorch, for autograd to differentiate: what fused_resnet.ops must compute.

Types are treated as a user of PyTorch would: batch norm and activation in float32 (float64 for float64), stored in the
type of ``x`` wherever a kernel writes a tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_resnet.ops import BatchNorm

__all__ = ["activate", "bn_act_conv", "bn_act_max_pool", "bn_add_act", "conv_bn_add_act", "wide"]


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def norm(x: Tensor, bn: BatchNorm | None) -> Tensor:
    if bn is None:
        return wide(x)
    mean, var, weight, bias = (None if v is None else wide(v)[:, None, None] for v in bn[:4])
    z = (wide(x) - mean) / torch.sqrt(var + bn.eps)
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def activate(z: Tensor, activation: str) -> Tensor:
    return z if activation == "identity" else getattr(F, activation)(z)


def bn_act_conv(
    x: Tensor, bn: BatchNorm | None, activation: str, weight: Tensor, *geometry: Any, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y = F.conv2d(activate(norm(x, bn), activation).to(x.dtype), weight, bias, *geometry)
    var, mean = torch.var_mean(wide(y), (0, 2, 3), correction=0)
    return y, mean, var


def bn_add_act(
    x: Tensor, bn: BatchNorm | None, residual: Tensor | None, residual_bn: BatchNorm | None, activation: str
) -> Tensor:
    z = norm(x, bn)
    return activate(z if residual is None else z + norm(residual, residual_bn), activation).to(x.dtype)


def bn_act_max_pool(x: Tensor, bn: BatchNorm | None, activation: str, *geometry: Any) -> Tensor:
    return F.max_pool2d(activate(norm(x, bn), activation).to(x.dtype), *geometry)


def conv_bn_add_act(
    x: Tensor, weight: Tensor, bn: BatchNorm | None, residual: Tensor | None, activation: str, *geometry: Any
) -> Tensor:
    y = F.conv2d(x, weight, None, *geometry)
    return bn_add_act(y, bn, residual, None, activation)
