"""Training without the dispatcher: a residual block as one node of the autograd graph, each way one native call.

A layer's op costs about a millisecond of Python and autograd forward, and another backward, once large kernels have
emptied the caches in between: a twelfth of a ResNet-50's step. As in :mod:`.prepared`, what does not change from step
to step is done once and remembered with all that it rests on (:func:`_state`); the tensors' values are read anew each
time. And a block that is one node adds the gradients of its convolutions and its shortcut where they are computed, in
the epilogue of dgrad, instead of in passes of their own.

It computes what the ops compute, and keeps the same tensors for backward. Whatever could see the ops gets them, as
does anything that is not all in training, in float32 or float64, with a gradient for every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import backends
from ..backends.arguments import Conv, RunningStatistics, TrainedLayer
from ..functional import check_batch
from ..ops import checks
from ..ops._library import once_differentiable
from .batch_norm import uses_batch_statistics
from .prepared import Layer, is_watched, settings, vectors
from .recognise import activation_of

__all__ = ["ResidualBlockFunction", "run"]


class _Trained(NamedTuple):
    state: tuple[Any, ...]
    block: Any  # backends.cpu.TrainingBlock
    parameters: list[Tensor]  # three a layer: of the convolution, and weight and bias of the batch norm
    tensors: list[Tensor]  # keep the identities and addresses in ``state`` from being taken by others


_known: Any = WeakIdKeyDictionary()  # _Trained by the module that owns the layers


def run(owner: nn.Module, layers: Sequence[Layer], x: Tensor) -> Tensor | None:
    """The last layer's output [N, K, OH, OW] in channels_last; None where the layers must be called as ops.

    ``x`` is [N, C, H, W] in channels_last, value 0. The last layer alone may have a residual: ``x``, or a layer
    without activation. Each other value is read by one layer. Running statistics have moved afterwards. ``owner`` is
    what the preparation is remembered for. Raises as :func:`fused_resnet.ops.bn_act_conv`.
    """
    if not torch.is_grad_enabled() or not x.requires_grad or not x.is_cpu or type(x) is not Tensor or is_watched():
        return None
    state = _state(layers, x)
    if state is None:
        return None
    trained = _known.get(owner)
    if trained is None or trained.state != state or not trained.block.is_current:
        trained = _prepare(layers, x, state)
        if trained is None:
            return None
        _known[owner] = trained
    out: Tensor = ResidualBlockFunction.apply(trained.block, x, *trained.parameters)
    return out


class ResidualBlockFunction(torch.autograd.Function):
    """A block as one node, with the gradients of its input and of all its parameters."""

    @staticmethod
    def forward(ctx: Any, block: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        out, statistics, raw = block.forward(x)
        ctx.block, ctx.layers = block, len(raw)
        # The parameters for their versions: a change in place before backward() is an error.
        ctx.save_for_backward(x, statistics, *raw, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        x, statistics, *raw = ctx.saved_tensors[: 2 + ctx.layers]
        g_x, g_weights, g_norms = ctx.block.backward(checks.channels_last(g_out, "g_out"), x, statistics, raw)
        g_parameters = [g for g_weight, g_norm in zip(g_weights, g_norms, strict=True) for g in (g_weight, *g_norm)]
        grads = (None, g_x, *g_parameters)
        return tuple(g if n else None for g, n in zip(grads, ctx.needs_input_grad, strict=True))


def _state(layers: Sequence[Layer], x: Tensor) -> tuple[Any, ...] | None:
    """All that a prepared block rests on, to be compared; None where it is nothing that can be prepared."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    state = [*settings(), x.shape, x.dtype]
    for conv, bn, activation, value, residual, pool in layers:
        weight, tracked = conv._parameters.get("weight"), bn._buffers.get("num_batches_tracked")
        mean, var, bn_weight, bn_bias = vectors(bn)
        if pool is not None or conv._parameters.get("bias") is not None or not isinstance(bn, nn.BatchNorm2d):
            return None
        if not uses_batch_statistics(bn) or bn.momentum is None:
            return None
        for parameter in (weight, bn_weight, bn_bias):
            if type(parameter) is not nn.Parameter or not parameter.requires_grad or parameter.is_inference():
                return None
            state += (id(parameter), parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        for buffer in (mean, var, tracked):
            if buffer is None:
                state.append(None)
            elif type(buffer) is not Tensor:
                return None
            else:
                state += (id(buffer), buffer.data_ptr())
        state += (conv.stride, conv.padding, conv.dilation, conv.groups, activation_of(activation), value, residual)
        state += (bn.eps, bn.momentum, bn.training, bn.track_running_stats)
    return tuple(state)


def _prepare(layers: Sequence[Layer], x: Tensor, state: tuple[Any, ...]) -> _Trained | None:
    """Checks the layers as the ops would."""
    values, parameters, buffers = [x.detach()], [], []
    steps: list[TrainedLayer] = []
    for conv, norm, act, value, _, _ in layers:
        geometry = Conv(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        mean, var, weight, bias = vectors(norm)
        checks.check_conv(values[value], conv.weight, None, geometry)
        (n, _, h, w), (k, _, r, s) = values[value].shape, conv.weight.shape
        shape = (n, k, *geometry.output_size((h, w), (r, s)))
        check_batch(shape, norm.eps)
        values.append(x.new_empty(()).expand(shape))  # something of its shape and type
        statistics = RunningStatistics(None, None, None, 0.0)
        if norm.training and norm.track_running_stats and norm.momentum is not None:
            statistics = RunningStatistics(mean, var, norm._buffers.get("num_batches_tracked"), norm.momentum)
        steps.append(
            TrainedLayer(
                values[value], conv.weight, weight, bias, norm.eps, statistics, activation_of(act), geometry, value
            )
        )
        parameters += [conv.weight, weight, bias]
        buffers += [t for t in statistics[:3] if t is not None]
    residual = layers[-1].residual
    if residual is not None and values[residual].shape != values[-1].shape:
        return None  # an error, or broadcast
    block = backends.prepare_training(steps, residual)
    # Detached tensors share the memory: while they live, no other tensor can have their address.
    tensors = [*buffers, *(t.detach() for t in (*parameters, *buffers))]
    return None if block is None else _Trained(state, block, parameters, tensors)
