"""Training without the dispatcher: a residual block as one node of the autograd graph, each way one native call.

A layer's op costs about a millisecond of Python and autograd forward, and another backward, once large kernels have
emptied the caches in between: a twelfth of a ResNet-50's step. As in :mod:`.prepared`, what does not change from step
to step is done once and remembered with all that it rests on: shapes and strides, the layers' numbers, the process's
settings. No tensor is remembered, nor where it lies: they are looked up, and checked, in each call. And a block that is
one node adds the gradients of its convolutions and its shortcut where they are computed, in the epilogue of dgrad,
instead of in passes of their own.

It computes what the ops compute, and keeps the same tensors for backward. Whatever could see the ops gets them, as
does anything that is not all in training, in float32 or float64, with a gradient for every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import backends
from ..backends.arguments import Conv, TrainedLayer
from ..functional import check_batch
from ..ops import checks
from ..ops._library import once_differentiable
from .batch_norm import uses_batch_statistics
from .prepared import Layer, is_watched, settings, vectors
from .recognise import activation_of

__all__ = ["ResidualBlockFunction", "run"]


_known: Any = WeakIdKeyDictionary()  # state and backends.cpu.TrainingBlock by the module that owns the layers


def run(owner: nn.Module, layers: Sequence[Layer], x: Tensor) -> Tensor | None:
    """The last layer's output [N, K, OH, OW] in channels_last; None where the layers must be called as ops.

    ``x`` is [N, C, H, W] in channels_last, value 0. The last layer alone may have a residual: ``x``, or a layer
    without activation. Each other value is read by one layer. Running statistics have moved afterwards. ``owner`` is
    what the preparation is remembered for. Raises as :func:`fused_resnet.ops.bn_act_conv`.
    """
    if not torch.is_grad_enabled() or not x.requires_grad or not x.is_cpu or type(x) is not Tensor or is_watched():
        return None
    state: list[Any] = [*settings(), x.shape, x.dtype]
    parameters: list[Tensor] = []
    running: list[Tensor | None] = []
    for layer in layers:
        tensors = _tensors(layer, x.dtype)
        if tensors is None:
            return None
        parameters += tensors[:3]  # type: ignore[arg-type]
        running += tensors[3:]
        state += _layer_state(layer)
    known = _known.get(owner)
    if known is None or known[0] != state or not known[1].is_current:
        block = _prepare(layers, x)
        if block is None:
            return None
        known = _known[owner] = state, block
    out: Tensor = ResidualBlockFunction.apply(known[1], x, running, *parameters)
    return out


class ResidualBlockFunction(torch.autograd.Function):
    """A block as one node, with the gradients of its input and of all its parameters."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor, running: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        out, statistics, raw = block.forward(x, parameters, running)
        ctx.block, ctx.layers = block, len(raw)
        ctx.save_for_backward(statistics, *parameters, x, *raw)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        statistics, *saved = ctx.saved_tensors
        parameters, images = saved[: 3 * ctx.layers], saved[3 * ctx.layers :]
        # Hooks may have kept them in another layout.
        g_out, x, *raw = (checks.channels_last(t) for t in (g_out, *images))
        g_x, g_parameters = ctx.block.backward(g_out, x, parameters, statistics, raw)
        return None, g_x, None, *g_parameters


def _tensors(layer: Layer, dtype: torch.dtype) -> list[Tensor | None] | None:
    """Weight, and the norm's weight, bias, running mean and variance and number of batches, None where it keeps none.

    None for all where the ops must be called: for what is not all in training, or not as the block takes it.
    """
    conv, bn = layer.conv, layer.bn
    if layer.pool is not None or conv._parameters.get("bias") is not None or not isinstance(bn, nn.BatchNorm2d):
        return None
    if not uses_batch_statistics(bn) or bn.momentum is None:
        return None
    weight = conv._parameters.get("weight")
    mean, var, bn_weight, bn_bias = vectors(bn)
    for parameter in (weight, bn_weight, bn_bias):
        if type(parameter) is not nn.Parameter or not parameter.requires_grad or parameter.is_inference():
            return None
    batches = bn._buffers.get("num_batches_tracked")
    if not (bn.training and bn.track_running_stats):
        mean = var = batches = None
    size = weight.shape[:1]  # type: ignore[union-attr]
    for tensor, shape, of_dtype in (
        (weight, None, dtype),
        (bn_weight, size, dtype),
        (bn_bias, size, dtype),
        (mean, size, dtype),
        (var, size, dtype),
        (batches, (), torch.int64),
    ):
        if tensor is None:
            continue
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.dtype != of_dtype or not tensor.is_cpu:
            return None
        if shape is not None and (tensor.shape != shape or not tensor.is_contiguous()):
            return None
    return [weight, bn_weight, bn_bias, mean, var, batches]


def _layer_state(layer: Layer) -> tuple[Any, ...]:
    """What the preparation of a layer rests on, to be compared."""
    conv, bn = layer.conv, layer.bn
    geometry = (conv.weight.shape, conv.weight.stride(), conv.stride, conv.padding, conv.dilation, conv.groups)
    return *geometry, bn.eps, bn.momentum, activation_of(layer.activation), layer.x, layer.residual


def _prepare(layers: Sequence[Layer], x: Tensor) -> Any:
    """Checks the layers as the ops would; None where the ops must be called."""
    values = [x.detach()]
    steps: list[TrainedLayer] = []
    for conv, bn, activation, value, _, _ in layers:
        geometry = Conv(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        checks.check_conv(values[value], conv.weight, None, geometry)
        (n, _, h, w), (k, _, r, s) = values[value].shape, conv.weight.shape
        shape = (n, k, *geometry.output_size((h, w), (r, s)))
        check_batch(shape, bn.eps)
        numbers = (bn.eps, bn.momentum or 0.0, activation_of(activation))
        steps.append(TrainedLayer(values[value], conv.weight, *numbers, geometry, value))
        values.append(x.new_empty(()).expand(shape))  # something of its shape and type
    residual = layers[-1].residual
    if residual is not None and values[residual].shape != values[-1].shape:
        return None  # an error, or broadcast
    return backends.prepare_training(steps, residual)
