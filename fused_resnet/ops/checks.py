"""The one door: what an op accepts is checked here, for every backend, and brought to the layout backends expect.

Every error says what was expected and what came. Types raise TypeError, values and shapes ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.arguments import ACTIVATIONS, BatchNorm, Conv, MaxPool, memory_format

__all__ = [
    "DTYPES",
    "channels_last",
    "check_activation",
    "check_batch_norm",
    "check_conv",
    "check_image",
    "check_max_pool",
    "check_residual",
    "dense",
    "like",
    "pair",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pair(value: Any, name: str) -> tuple[int, int]:
    """``value`` as (height, width): an int for both, or two of them."""
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return value, value  # type: ignore[return-value]
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int | torch.SymInt) for v in value):
        return value[0], value[1]
    raise TypeError(f"{name}: expected an int or two, got {value!r}")


def check_image(x: Any, name: str = "x") -> None:
    """``x`` must be a [N, C, H, W] tensor of one of DTYPES."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions [N, C, H, W], got {x.dim()}: {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected {' or '.join(map(str, DTYPES))}, got {x.dtype}")


def channels_last(x: Tensor, name: str = "x") -> Tensor:
    """``x`` [N, C, H, W], dense in channels_last."""
    check_image(x, name)
    return x.contiguous(memory_format=torch.channels_last)


def dense(x: Tensor, name: str = "x") -> Tensor:
    """``x`` [N, C, H, W], dense, in channels_last or contiguous, whichever it is nearer to."""
    check_image(x, name)
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.stride(1) == 1 else torch.contiguous_format)


def like(other: Tensor, x: Tensor) -> Tensor:
    """``other``, dense in the layout of the dense tensor ``x``."""
    return other.contiguous(memory_format=memory_format(x))


def check_activation(name: str) -> None:
    """``name`` must be one of ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")


def check_batch_norm(x: Tensor, bn: BatchNorm | None, name: str = "bn", channels: int | None = None) -> None:
    """The vectors of ``bn`` must be [channels], by default those of ``x`` [N, C, H, W], on its device."""
    if bn is None:
        return
    if bn.var is None:
        raise ValueError(f"{name}.var: expected a tensor beside mean, got None")
    for field in ("mean", "var", "weight", "bias"):
        vector = getattr(bn, field)
        if vector is not None:
            _check_vector(vector, x.shape[1] if channels is None else channels, x, f"{name}.{field}")
    if bn.eps < 0:
        raise ValueError(f"{name}.eps: expected a number that is not negative, got {bn.eps}")


def check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv) -> None:
    """``weight`` [K, C / groups, R, S], ``bias`` [K] and ``conv`` must fit ``x`` [N, C, H, W]."""
    check_image(weight, "weight")
    _check_same_type(weight, x, "weight")
    for field, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        if min(getattr(conv, field)) < least:
            raise ValueError(f"{field}: expected at least {least}, got {tuple(getattr(conv, field))}")
    groups = conv.groups
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {weight.shape[0]} output channels, got {groups}")
    if weight.shape[1] * groups != x.shape[1]:
        raise ValueError(
            f"weight: expected {weight.shape[1]} x {groups} groups = {weight.shape[1] * groups} input channels, "
            f"got x with {x.shape[1]}: {list(x.shape)}"
        )
    if min(weight.shape) < 1:
        raise ValueError(f"weight: expected no empty dimension, got {list(weight.shape)}")
    if min(conv.output_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3]))) < 1:
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, weight.shape[2:], strict=True)]
        room = [s + 2 * p for s, p in zip(x.shape[2:], conv.padding, strict=True)]
        raise ValueError(f"weight: expected a (dilated) kernel within the padded input {room}, got {reach}")
    if bias is not None:
        _check_vector(bias, weight.shape[0], x, "bias")
        _check_same_type(bias, x, "bias")


def check_residual(residual: Tensor | None, shape: Sequence[int], x: Tensor) -> None:
    """``residual`` must have this shape and the type and device of ``x``."""
    if residual is None:
        return
    check_image(residual, "residual")
    if tuple(residual.shape) != tuple(shape):
        raise ValueError(f"residual: expected shape {list(shape)}, got {list(residual.shape)}")
    _check_same_type(residual, x, "residual")


def check_max_pool(x: Tensor, pool: MaxPool) -> None:
    """``pool`` must fit ``x`` [N, C, H, W]; its window has at most 256 positions, for the one-byte indices."""
    for field, least in (("kernel_size", 1), ("stride", 1), ("padding", 0)):
        if min(getattr(pool, field)) < least:
            raise ValueError(f"{field}: expected at least {least}, got {tuple(getattr(pool, field))}")
    if any(2 * p > k for p, k in zip(pool.padding, pool.kernel_size, strict=True)):
        raise ValueError(f"padding: expected at most half of kernel_size {pool.kernel_size}, got {pool.padding}")
    if pool.kernel_size[0] * pool.kernel_size[1] > 256:
        raise ValueError(f"kernel_size: expected a window of at most 256 positions, got {pool.kernel_size}")
    if min(pool.output_size((x.shape[2], x.shape[3]))) < 1:
        room = [s + 2 * p for s, p in zip(x.shape[2:], pool.padding, strict=True)]
        raise ValueError(f"kernel_size: expected a window within the padded input {room}, got {pool.kernel_size}")


def _check_vector(v: Any, length: int, x: Tensor, name: str) -> None:
    if not isinstance(v, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(v).__name__}")
    if v.dim() != 1 or v.shape[0] != length:
        raise ValueError(f"{name}: expected shape [{length}], got {list(v.shape)}")
    if not v.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {v.dtype}")
    if v.device != x.device:
        raise ValueError(f"{name}: expected device {x.device}, got {v.device}")


def _check_same_type(t: Tensor, x: Tensor, name: str) -> None:
    if t.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype}, the type of x, got {t.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name}: expected device {x.device}, that of x, got {t.device}")
