"""Inference without the dispatcher: the convolutions of a block as one native call that has been prepared.

A layer's op costs about 75 us of Python before its kernel starts, three times that where large kernels have emptied the
caches in between: with single images a third of all time. None of it changes from call to call, so it is done once,
checks and packed filters included, and remembered with all that it rests on (:func:`_state`): shapes and strides, the
tensors' identities, versions and addresses, the layers' geometry, the process's settings. A call then compares that,
makes room for the output and calls C++. What may change without a trace is read anew in each call: the batch norms'
vectors, and a few numbers of each filter, for writes through ``.data``.

Whatever could see the ops gets them: this path is not taken under tracing and compiling, function and dispatch modes,
``torch.func``, autocast or a profiler, for subclasses of Tensor, with gradients on, or on another backend than ``cpu``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import backends
from ..backends.arguments import Activation, BatchNorm, Conv, MaxPool, PreparedLayer
from ..backends.precision import get_float32_conv_precision
from ..ops import checks
from ..ops.conv_bn_add_act import check
from .batch_norm import uses_batch_statistics
from .recognise import activation_of

__all__ = ["Layer", "is_observed", "is_watched", "run", "settings", "tensor_of", "vectors"]


class Layer(NamedTuple):
    """``pool(act(bn(conv(values[x])) + values[residual]))``; values are those given to :func:`run`, then outputs."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    activation: nn.Module | Activation | None
    x: int = 0
    residual: int | None = None
    pool: nn.MaxPool2d | None = None


class _Prepared(NamedTuple):
    state: tuple[Any, ...]
    call: Any  # backends.cpu.PreparedConvs
    tensors: list[Tensor]  # keep the identities in ``state`` from being taken by others


_known: Any = WeakIdKeyDictionary()  # _Prepared by the module that owns the layers


def run(owner: nn.Module, layers: Sequence[Layer], *given: Tensor) -> Tensor | None:
    """The last layer's output [N, K, OH, OW] in channels_last; None where the layers must be called as ops.

    ``given`` are [N, C, H, W], of which each is read as a layer's ``x`` or ``residual``. ``owner`` is what the
    preparation is remembered for. Raises as :func:`fused_resnet.ops.conv_bn_add_act`.
    """
    if is_observed() or not all(type(t) is Tensor and t.is_cpu and not t.is_neg() for t in given):
        return None
    given = tuple(checks.channels_last(t) for t in given)
    state = _state(layers, given)
    if state is None:
        return None
    prepared = _known.get(owner)
    if prepared is None or prepared.state != state:
        prepared = _prepare(layers, given, state)
        if prepared is None:
            return None
        _known[owner] = prepared
    out: Tensor | None = prepared.call(*given)
    if out is None:  # a filter has changed without a trace
        del _known[owner]
        return run(owner, layers, *given)
    return out


def is_observed() -> bool:
    """Whether anything could see an op, or make it more than its kernel; gradients are enough."""
    return torch.is_grad_enabled() or is_watched()


def is_watched() -> bool:
    """The same of all but gradients."""
    return (
        torch.compiler.is_compiling()
        or torch.autograd._profiler_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def settings() -> tuple[Any, ...]:
    """Of the process, what the choice of kernels rests on."""
    return (
        get_float32_conv_precision(),
        torch.get_num_threads(),
        backends.requested_backend(),
        os.environ.get("FUSED_RESNET_CONV"),
    )


def _state(layers: Sequence[Layer], given: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """All that a prepared call rests on, to be compared; None where it is nothing that can be prepared."""
    if given[0].dtype not in (torch.float32, torch.float64):
        return None  # numbers would have to be converted in each call
    state = list(settings())
    for t in given:
        state += (t.shape, t.dtype)
    for conv, bn, activation, x, residual, pool in layers:
        weight, bias = tensor_of(conv, "weight"), tensor_of(conv, "bias")
        if uses_batch_statistics(bn) or type(weight) is not nn.Parameter or weight.is_inference():
            return None
        state += (id(weight), weight._version, weight.shape, weight.stride(), activation_of(activation), x, residual)
        state += (tuple(conv.stride), tuple(conv.padding), tuple(conv.dilation), conv.groups, float(bn.eps))
        if pool is not None:
            state += (pool.kernel_size, pool.stride, pool.padding)
        for t in (weight, bias, *vectors(bn)):
            if t is None:
                state.append(None)
            elif type(t) is Tensor or type(t) is nn.Parameter:
                state += (id(t), t.data_ptr())
            else:
                return None
    return tuple(state)


def vectors(bn: nn.BatchNorm2d) -> tuple[Any, ...]:
    """Mean, var, weight and bias, each [K] or None."""
    return tuple(tensor_of(bn, name) for name in ("running_mean", "running_var", "weight", "bias"))


def tensor_of(module: nn.Module, name: str) -> Any:
    """A parameter, buffer or plain attribute, mostly without the detour by ``nn.Module.__getattr__``."""
    for tensors in (module._parameters, module._buffers):
        if name in tensors:
            return tensors[name]
    return getattr(module, name)


def _prepare(layers: Sequence[Layer], given: Sequence[Tensor], state: tuple[Any, ...]) -> _Prepared | None:
    """Checks the layers as the op would, and packs their filters."""
    values, tensors = list(given), []
    steps: list[PreparedLayer] = []
    for conv, norm, act, x, residual, max_pool in layers:
        bn, activation = BatchNorm(*(*vectors(norm), norm.eps)), activation_of(act)
        geometry = Conv(conv.stride, conv.padding, conv.dilation, conv.groups)  # type: ignore[arg-type]
        shape = check(values[x], conv.weight, conv.bias, bn, None, activation, geometry)
        addend = None if residual is None else values[residual]
        if addend is not None and addend.shape != shape:
            return None  # an error, or broadcast
        checks.check_residual(addend, shape, values[x])
        out, pool = values[x].new_empty(()).expand(shape), None  # something of its shape and type
        if max_pool is not None:
            pool = MaxPool(*(checks.pair(getattr(max_pool, name), name) for name in MaxPool._fields))
            checks.check_max_pool(out, pool)
            out = out[:, :, :1, :1].expand(*shape[:2], *pool.output_size(shape[2:]))
        steps.append(PreparedLayer(values[x], conv.weight, conv.bias, bn, activation, geometry, x, residual, pool))
        values.append(out)
        tensors += [t for t in (conv.weight, conv.bias, *bn[:4]) if t is not None]
    call = backends.prepare_convs(len(given), steps)
    # Detached tensors share the memory: while they live, no other tensor can have their address.
    return None if call is None else _Prepared(state, call, [*tensors, *(t.detach() for t in tensors)])
