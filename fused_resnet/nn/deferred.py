"""Layers that hand each other a convolution's raw output: batch norm and activation run inside the op that reads it.

Stock PyTorch cuts a network as ``conv | bn | act``. Here a convolution followed by a batch norm and an activation gives
a :class:`Deferred`, which is ``act(norm(raw))`` in value and only ``raw`` in memory. The next convolution, the block's
tail or the pooling applies the norm and the activation while it loads ``raw``, so that training writes and keeps one
tensor for each convolution instead of two. In inference there is nothing to keep, and the convolution's epilogue does
it all.

The functions take modules, and each must be one that :mod:`.recognise` has no objection to. Running statistics move
when a value is read for good, by :func:`add_act`, :func:`max_pool` or :func:`materialise`, in the order of the layers
and right before that op: an error on the way leaves them as they were. So each Deferred must be read once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from ..backends.arguments import Activation, BatchNorm
from ..functional import batch_statistics, check_batch, needs_gradient
from ..ops import checks
from . import prepared
from .batch_norm import StatisticsUpdate, running_batch_norm, uses_batch_statistics
from .recognise import IDENTITY, activation_of
from .synchronise import process_group, synchronised_statistics

__all__ = [
    "Deferred",
    "add_act",
    "conv",
    "conv_bn",
    "conv_bn_act",
    "conv_bn_add_act",
    "defer",
    "materialise",
    "max_pool",
    "norm",
]


class Deferred(NamedTuple):
    """A tensor whose value is ``act(norm(raw))``, not yet computed."""

    raw: Tensor  # [N, C, H, W]
    bn: BatchNorm
    activation: Activation
    updates: tuple[StatisticsUpdate, ...]  # what reading the value does to running statistics


def conv_bn_act(
    x: Tensor | Deferred,  # [N, C, H, W]
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    activation: nn.Module | Activation | None = None,
) -> Tensor | Deferred:
    """``act(bn(conv(x)))`` [N, K, OH, OW]: deferred where a gradient or batch statistics need the raw output."""
    if isinstance(x, Tensor):
        y = prepared.run(conv, (prepared.Layer(conv, bn, activation),), x)
        if y is not None:
            return y
    if not isinstance(x, Deferred) and _is_inference(x, conv, bn):
        return _convolve_to_the_end(x, conv, bn, None, activation)
    return defer(x, conv, bn, activation)


def conv_bn_add_act(
    x: Tensor | Deferred,  # [N, C, H, W]
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    residual: Tensor | Deferred,  # [N, K, OH, OW]
    activation: nn.Module | Activation | None = None,
) -> Tensor:
    """``act(bn(conv(x)) + residual)`` [N, K, OH, OW]: the end of a block."""
    if isinstance(x, Tensor) and isinstance(residual, Tensor):
        y = prepared.run(conv, (prepared.Layer(conv, bn, activation, 0, 1),), x, residual)
        if y is not None:
            return y
    if not isinstance(x, Deferred) and not isinstance(residual, Deferred) and _is_inference(x, conv, bn, residual):
        return _convolve_to_the_end(x, conv, bn, residual, activation)
    return add_act(defer(x, conv, bn), residual, activation)


def conv_bn(x: Tensor | Deferred, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """``bn(conv(x))`` [N, K, OH, OW], for a value that nothing takes raw.

    In training there is nothing to fuse it with, and the stock layers keep as little and are quicker to call.
    """
    if not isinstance(x, Deferred) and not isinstance(bn, nn.SyncBatchNorm) and uses_batch_statistics(bn):
        y: Tensor = bn(conv(x))
        return y
    return materialise(conv_bn_act(x, conv, bn))


def defer(
    x: Tensor | Deferred,  # [N, C, H, W]
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d,
    activation: nn.Module | Activation | None = None,
) -> Deferred:
    """``act(bn(conv(x)))`` [N, K, OH, OW], deferred. Raises ValueError as stock does for one value per channel."""
    raw, norm, act, updates = x if isinstance(x, Deferred) else (x, None, IDENTITY, ())
    y, mean, var = ops.bn_act_conv(
        raw,
        norm,
        act.name,
        conv.weight,
        *_geometry(conv),
        bias=conv.bias,
        statistics=uses_batch_statistics(bn),
        negative_slope=act.negative_slope,
    )
    return _normed(y, bn, mean, var, activation_of(activation), updates)


def norm(
    x: Tensor,  # [N, C, H, W]
    bn: nn.BatchNorm2d,
    activation: nn.Module | Activation | None = None,
) -> Deferred:
    """``act(bn(x))`` [N, C, H, W], deferred; the batch's statistics take a pass over ``x``. Raises as :func:`defer`."""
    checks.check_image(x)
    mean, var = batch_statistics(x) if uses_batch_statistics(bn) else (x, x)
    return _normed(x, bn, mean, var, activation_of(activation), ())


def conv(x: Tensor | Deferred, conv: nn.Conv2d) -> Tensor:
    """``conv(x)`` [N, K, OH, OW], for a convolution that no batch norm follows."""
    if not isinstance(x, Deferred):
        y: Tensor = conv(x)
        return y
    raw, bn, act, updates = x
    _commit(*updates)
    y, _, _ = ops.bn_act_conv(
        raw,
        bn,
        act.name,
        conv.weight,
        *_geometry(conv),
        bias=conv.bias,
        statistics=False,
        negative_slope=act.negative_slope,
    )
    return y


def add_act(
    x: Tensor | Deferred,  # [N, C, H, W]
    residual: Tensor | Deferred | None = None,  # [N, C, H, W]
    activation: nn.Module | Activation | None = None,
) -> Tensor:
    """``act(x + residual)`` [N, C, H, W] in the type of ``x``."""
    x, bn, updates = _addend(x)
    residual, residual_bn, residual_updates = (None, None, ()) if residual is None else _addend(residual)
    if residual is not None and residual.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
        residual = residual.to(x.dtype)  # as stock's in-place add does to a float32 block input
    checks.check_residual(residual, x.shape, x)
    _commit(*updates, *residual_updates)
    act = activation_of(activation)
    return ops.bn_add_act(x, bn, residual, residual_bn, act.name, negative_slope=act.negative_slope)


def max_pool(x: Tensor | Deferred, pool: nn.MaxPool2d) -> Tensor:
    """``pool(x)`` [N, C, OH, OW] for ``x`` [N, C, H, W]."""
    raw, bn, act, updates = x if isinstance(x, Deferred) else (x, None, IDENTITY, ())
    _commit(*updates)
    geometry = (pool.kernel_size, pool.stride, pool.padding)
    return ops.bn_act_max_pool(raw, bn, act.name, *geometry, negative_slope=act.negative_slope)


def materialise(x: Tensor | Deferred) -> Tensor:
    """``x`` [N, C, H, W] as a tensor."""
    if not isinstance(x, Deferred):
        return x
    _commit(*x.updates)
    return ops.bn_add_act(x.raw, x.bn, None, None, x.activation.name, negative_slope=x.activation.negative_slope)


def _normed(
    y: Tensor,  # [N, K, OH, OW]
    bn: nn.BatchNorm2d,
    mean: Tensor,  # [K], read where bn uses the batch's statistics
    var: Tensor,  # [K]
    activation: Activation,
    updates: tuple[StatisticsUpdate, ...],
) -> Deferred:
    if not uses_batch_statistics(bn):
        return Deferred(y, running_batch_norm(bn), activation, updates)
    count = None
    if (group := process_group(bn)) is None:
        check_batch(y.shape, bn.eps)
    else:
        mean, var, count = synchronised_statistics(mean, var, y.shape[0] * y.shape[2] * y.shape[3], group)
    update = StatisticsUpdate(bn, mean, var, y.shape, count)
    return Deferred(y, BatchNorm(mean, var, bn.weight, bn.bias, bn.eps), activation, (*updates, update))


def _addend(x: Tensor | Deferred) -> tuple[Tensor, BatchNorm | None, tuple[StatisticsUpdate, ...]]:
    if isinstance(x, Deferred) and x.activation.name == "identity":
        return x.raw, x.bn, x.updates
    return materialise(x), None, ()


def _commit(*updates: StatisticsUpdate) -> None:
    for update in updates:
        update.commit()


def _is_inference(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, residual: Tensor | None = None) -> bool:
    return not uses_batch_statistics(bn) and not needs_gradient(x, residual, conv.weight, conv.bias, bn.weight, bn.bias)


def _convolve_to_the_end(
    x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, residual: Tensor | None, activation: nn.Module | Activation | None
) -> Tensor:
    act = activation_of(activation)
    return ops.conv_bn_add_act(
        x,
        conv.weight,
        running_batch_norm(bn),
        residual,
        act.name,
        *_geometry(conv),
        bias=conv.bias,
        negative_slope=act.negative_slope,
    )


def _geometry(conv: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return conv.stride, conv.padding, conv.dilation, conv.groups
