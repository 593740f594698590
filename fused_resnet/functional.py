"""The ops under the names and signatures of ``torch.nn.functional``: plain tensors in, one plain tensor out.

Each is a composition of :mod:`fused_resnet.ops`. Modules do better where layers follow each other, because they hand a
convolution's raw output to the next one: see :mod:`fused_resnet.nn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops
from .backends.arguments import accumulate_dtype
from .ops import checks
from .ops._library import once_differentiable

__all__ = [
    "add_act",
    "batch_statistics",
    "bn_add_act",
    "check_batch",
    "conv_bn_act",
    "needs_gradient",
    "update_running_statistics",
]


def conv_bn_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    running_mean: Tensor | None,  # [K]
    running_var: Tensor | None,  # [K]
    bn_weight: Tensor | None = None,  # [K]
    bn_bias: Tensor | None = None,  # [K]
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: Tensor | None = None,  # [K]
    negative_slope: float = 0.01,
) -> Tensor:
    """``act(batch_norm(conv2d(x, weight)))`` [N, K, OH, OW] in channels_last and the type of ``x``.

    Arguments are those of ``torch.nn.functional.conv2d`` and ``batch_norm``: with ``training`` the batch's own
    statistics normalise and the running ones, where given, are updated in place; without it the running ones
    normalise. ``activation`` is one of ``fused_resnet.ops.ACTIVATIONS``; ``negative_slope`` is read by ``leaky_relu``.

    Raises TypeError and ValueError with what was expected and what came; running statistics are then as they were.
    """
    geometry = (stride, padding, dilation, groups)
    if training:
        y, mean, var = ops.bn_act_conv(x, None, "identity", weight, *geometry, bias=bias)
        check_batch(y.shape, eps)
        bn = ops.BatchNorm(mean, var, bn_weight, bn_bias, eps)
        _check_tail(y, bn, None, activation)
        update_running_statistics(running_mean, running_var, mean, var, y.shape, momentum)
        return ops.bn_add_act(y, bn, activation=activation, negative_slope=negative_slope)
    bn = _running(running_mean, running_var, bn_weight, bn_bias, eps)
    if not needs_gradient(x, weight, bias, bn_weight, bn_bias):
        return ops.conv_bn_add_act(x, weight, bn, None, activation, *geometry, bias=bias, negative_slope=negative_slope)
    y, _, _ = ops.bn_act_conv(x, None, "identity", weight, *geometry, bias=bias, statistics=False)
    return ops.bn_add_act(y, bn, activation=activation, negative_slope=negative_slope)


def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    running_mean: Tensor | None,  # [C]
    running_var: Tensor | None,  # [C]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    residual: Tensor | None = None,  # [N, C, H, W]
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """``act(batch_norm(x) + residual)`` [N, C, H, W] in the layout and type of ``x``.

    ``training``, ``momentum`` and the running statistics work as in :func:`conv_bn_act`; the statistics of ``x`` take a
    pass of their own here. Raises as :func:`conv_bn_act`.
    """
    if training:
        checks.check_image(x)
        check_batch(x.shape, eps)
        mean, var = batch_statistics(x)
        bn = ops.BatchNorm(mean, var, weight, bias, eps)
        _check_tail(x, bn, residual, activation)
        update_running_statistics(running_mean, running_var, mean, var, x.shape, momentum)
    else:
        bn = _running(running_mean, running_var, weight, bias, eps)
    return ops.bn_add_act(x, bn, residual, None, activation, negative_slope=negative_slope)


def add_act(
    x: Tensor,  # [N, C, H, W]
    residual: Tensor,  # [N, C, H, W]
    activation: str = "relu",
    *,
    negative_slope: float = 0.01,
) -> Tensor:
    """``act(x + residual)`` [N, C, H, W] in the layout and type of ``x``; raises as :func:`conv_bn_act`."""
    return ops.bn_add_act(x, None, residual, None, activation, negative_slope=negative_slope)


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of ``x`` [N, C, H, W] in float32 (float64 for float64), differentiable once.

    Those of an empty batch are zero.
    """
    x = x.to(accumulate_dtype(x.dtype))
    if x.numel() == 0:
        return x.sum((0, 2, 3)), x.sum((0, 2, 3))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        mean, var = _BatchStatistics.apply(x)
        return mean, var
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, var


class _BatchStatistics(torch.autograd.Function):
    """As stock batch norm takes them on a CPU: torch.var_mean takes ten times as long in channels_last.

    Backward: g_x = g_mean / m + 2 g_var (x - mean) / m, with m = N H W.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_mean: Tensor, g_var: Tensor) -> tuple[Tensor]:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        mean, offset, scale = (v.view(1, -1, 1, 1) for v in (mean, g_mean / count, g_var * (2 / count)))
        return (torch.addcmul(offset, x - mean, scale),)  # centred first, as the mean may dwarf the deviation


def check_batch(size: Sequence[int], eps: float) -> None:
    """Raises ValueError where a batch of ``size`` [N, C, H, W] cannot be normalised by its own statistics."""
    if size[0] * size[2] * size[3] == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")
    if eps <= 0:
        raise ValueError(f"batch_norm eps must be positive during training, but got {eps}")


@torch.no_grad()
def update_running_statistics(
    running_mean: Tensor | None,  # [C]
    running_var: Tensor | None,  # [C]
    mean: Tensor,  # [C]
    var: Tensor,  # [C], biased
    size: Sequence[int],  # of the batch, [N, C, H, W]
    momentum: float | Tensor,
    values: Tensor | None = None,  # [], their number per channel
) -> None:
    """Moves the running statistics towards those of a batch, in place: ``running += momentum (batch - running)``.

    The running variance takes the unbiased one, with ``values`` - 1 in the denominator. ``values`` is N H W of ``size``
    unless the batch is spread over processes. An empty batch moves nothing.
    """
    count: int | Tensor = size[0] * size[2] * size[3] if values is None else values
    if values is None and count == 0:
        return
    for running, batch in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
        if running is not None and running.dtype == batch.dtype:
            running.lerp_(batch, momentum)
        elif running is not None:
            dtype = torch.promote_types(running.dtype, batch.dtype)
            running.copy_(torch.lerp(running.to(dtype), batch.to(dtype), momentum))


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an op on these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_tail(x: Tensor, bn: ops.BatchNorm, residual: Tensor | None, activation: str) -> None:
    """What bn_add_act checks, before running statistics move: an error must leave them as they were."""
    checks.check_batch_norm(x, bn)
    checks.check_residual(residual, x.shape, x)
    checks.check_activation(activation)


def _running(
    mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> ops.BatchNorm:
    if mean is None or var is None:
        raise ValueError("running_mean and running_var: expected tensors where training is False, got None")
    return ops.BatchNorm(mean, var, weight, bias, eps)
