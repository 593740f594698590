"""Training without the dispatcher: a residual block as one node of the autograd graph, each way one native call.

A layer's op costs about a millisecond of Python and autograd forward, and another backward, once large kernels have
emptied the caches in between: a twelfth of a ResNet-50's step. As in :mod:`.prepared`, what does not change from step
to step is done once and remembered with all that it rests on: shapes and strides, the layers' numbers, the process's
settings. No tensor is remembered, nor where it lies: they are looked up, and checked, in each call. And a block that is
one node adds the gradients of its convolutions and its shortcut where they are computed, in the epilogue of dgrad,
instead of in passes of their own.

It computes what the ops compute, and keeps the same tensors for backward. Whatever could see the ops gets them, in
forward, with hooks for saved tensors too, or in backward; as does anything that is not all in training, in float32 or
float64, with a gradient for every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import backends
from ..backends.arguments import Conv, TrainedLayer
from ..functional import check_batch
from ..ops import checks
from ..ops._library import once_differentiable
from .batch_norm import uses_batch_statistics
from .prepared import Layer, is_watched, settings, tensor_of, vectors
from .recognise import IDENTITY, activation_of

__all__ = ["ResidualBlockFunction", "run"]


_known: Any = WeakIdKeyDictionary()  # state and _Block by the module that owns the layers


class _Block(NamedTuple):
    native: Any  # backends.cpu.TrainingBlock
    layers: list[TrainedLayer]
    residual: int | None  # number of a value


def run(owner: nn.Module, layers: Sequence[Layer], x: Tensor) -> Tensor | None:
    """The last layer's output [N, K, OH, OW] in channels_last; None where the layers must be called as ops.

    ``x`` is [N, C, H, W] in channels_last, value 0. The last layer alone may have a residual, any value. Each value
    but ``x`` is read once. Running statistics have moved afterwards. ``owner`` is what the preparation is remembered
    for. Raises as :func:`fused_resnet.ops.bn_act_conv`.
    """
    if not torch.is_grad_enabled() or not x.requires_grad or not x.is_cpu or type(x) is not Tensor:
        return None
    if is_watched() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None or x.is_neg():
        return None
    residual = layers[-1].residual
    if residual and activation_of(layers[residual - 1].activation).name != "identity":
        return None
    if len({id(layer.bn) for layer in layers}) < len(layers):
        return None  # its running statistics move in the order of the ops
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
    known, block = _known.get(owner, (None, None))
    if known != state or not block.native.is_current:
        block = _prepare(layers, x)
        if block is None:
            return None
        _known[owner] = state, block
    out: Tensor = ResidualBlockFunction.apply(block, x, running, *parameters)
    return out


class ResidualBlockFunction(torch.autograd.Function):
    """A block as one node, with the gradients of its input and of all its parameters."""

    @staticmethod
    def forward(ctx: Any, block: _Block, x: Tensor, running: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        out, statistics, raw = block.native.forward(x, parameters, running)
        ctx.block, ctx.dtype = block, x.dtype
        ctx.shapes = [t.shape for t in (x, *parameters)]
        ctx.save_for_backward(x, *parameters, statistics, *raw)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        count, saved = len(ctx.shapes), ctx.saved_tensors
        (x, *parameters), (statistics, *raw) = saved[:count], saved[count:]
        for tensor, shape in zip(saved[:count], ctx.shapes, strict=True):
            if tensor.shape != shape or tensor.dtype != ctx.dtype or not tensor.is_cpu or not tensor.data_ptr():
                raise RuntimeError(
                    f"backward of a residual block: expected {list(shape)} in {ctx.dtype} on cpu as in its forward, "
                    f"got {list(tensor.shape)} in {tensor.dtype} on {tensor.device}"
                )
        if is_watched() or torch._C._functorch.is_legacy_batchedtensor(g_out):
            g_x, g_parameters = _backward_as_ops(ctx.block, g_out, x, parameters, statistics, raw)
        else:
            g_out, x = checks.channels_last(g_out.resolve_neg()), checks.channels_last(x)
            g_x, g_parameters = ctx.block.native.backward(g_out, x, parameters, statistics, raw)
        return None, g_x, None, *g_parameters


def _backward_as_ops(
    block: _Block,
    g_out: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    statistics: Tensor,
    raw: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of x and of the parameters, for whoever looks at ops."""
    none = (None, None, None, None, 0.0)
    values: list[tuple[Any, ...]] = [(x, none, IDENTITY)]
    vectors = iter(statistics.split([y.shape[1] for y in raw for _ in range(2)]))
    for i, (layer, y) in enumerate(zip(block.layers, raw, strict=True)):
        bn = (next(vectors), next(vectors), *parameters[3 * i + 1 : 3 * i + 3], layer.eps)
        values.append((y, bn, layer.activation))
    y, bn, activation = values[-1]
    residual, residual_bn, _ = (None, none, None) if block.residual is None else values[block.residual]
    backward = torch.ops.fused_resnet.bn_add_act_backward
    g_y, g_bn, g_residual, g_residual_bn = backward(g_out, y, *bn, residual, *residual_bn, *activation)
    gradients: dict[int | None, tuple[Any, Any]] = {block.residual: (g_residual, g_residual_bn)}
    gradients[len(raw)] = g_y, g_bn
    g_parameters: list[Tensor] = []
    for number in range(len(raw), 0, -1):
        layer, weight = block.layers[number - 1], parameters[3 * number - 3]
        (g_y, g_bn), (y, (y_mean, *_), _), (u, bn, activation) = (
            gradients[number],
            values[number],
            values[layer.x_value],
        )
        arguments = (u, *bn, *activation, weight, None, *layer.conv, True)
        backward = torch.ops.fused_resnet.bn_act_conv_backward
        g_u, g_u_bn, g_weight, _ = backward(g_y, g_bn[0], g_bn[1], y, y_mean, [True, True, False], *arguments)
        if layer.x_value in gradients:
            g_u = g_u + gradients[layer.x_value][0]
        gradients[layer.x_value] = g_u, g_u_bn
        g_parameters = [g_weight, g_bn[2], g_bn[3], *g_parameters]
    return gradients[0][0], g_parameters


def _tensors(layer: Layer, dtype: torch.dtype) -> list[Tensor | None] | None:
    """Weight, and the norm's weight, bias, running mean and variance and number of batches, None where it keeps none.

    None for all where the ops must be called: for what is not all in training, or not as the block takes it.
    """
    conv, bn = layer.conv, layer.bn
    if layer.pool is not None or tensor_of(conv, "bias") is not None or not isinstance(bn, nn.BatchNorm2d):
        return None
    if not uses_batch_statistics(bn) or not isinstance(bn.momentum, float | int):
        return None
    weight, batches = tensor_of(conv, "weight"), tensor_of(bn, "num_batches_tracked")
    mean, var, bn_weight, bn_bias = vectors(bn)
    for parameter in (weight, bn_weight, bn_bias):
        if type(parameter) is not nn.Parameter or not parameter.requires_grad or parameter.is_inference():
            return None
    if not (bn.training and bn.track_running_stats):
        mean = var = batches = None
    size = weight.shape[:1]
    for tensor, shape, of_dtype in (
        (weight, weight.shape, dtype),
        (bn_weight, size, dtype),
        (bn_bias, size, dtype),
        (mean, size, dtype),
        (var, size, dtype),
        (batches, (), torch.int64),
    ):
        if tensor is None:
            continue
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.dtype != of_dtype or tensor.shape != shape:
            return None
        if not tensor.is_cpu or not tensor.data_ptr() or not (tensor is weight or tensor.is_contiguous()):
            return None
    return [weight, bn_weight, bn_bias, mean, var, batches]


def _layer_state(layer: Layer) -> tuple[Any, ...]:
    """What the preparation of a layer rests on, to be compared."""
    conv, bn = layer.conv, layer.bn
    geometry = (tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation), conv.groups)
    numbers = (float(bn.eps), bn.momentum, activation_of(layer.activation))
    return conv.weight.shape, conv.weight.stride(), *geometry, *numbers, layer.x, layer.residual


def _prepare(layers: Sequence[Layer], x: Tensor) -> _Block | None:
    """Checks the layers as the ops would; None where the ops must be called."""
    values, weights = [x], [layer.conv.weight for layer in layers]
    steps: list[TrainedLayer] = []
    for (conv, bn, activation, value, _, _), weight in zip(layers, weights, strict=True):
        geometry = Conv(tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation), conv.groups)  # type: ignore[arg-type]
        checks.check_conv(values[value], weight, None, geometry)
        (n, _, h, w), (k, _, r, s) = values[value].shape, weight.shape
        shape = (n, k, *geometry.output_size((h, w), (r, s)))
        check_batch(shape, bn.eps)
        values.append(x.new_empty(()).expand(shape))  # something of its shape and type
        steps.append(TrainedLayer(float(bn.eps), bn.momentum or 0.0, activation_of(activation), geometry, value))
    residual = layers[-1].residual
    if residual is not None and values[residual].shape != values[-1].shape:
        return None  # an error, or broadcast
    inputs = [values[step.x_value] for step in steps]
    native = backends.prepare_training(inputs, weights, steps, residual)
    return None if native is None else _Block(native, steps, residual)
