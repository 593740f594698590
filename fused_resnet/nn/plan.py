"""A forward as a list of steps: what :mod:`fused_resnet.fuse` makes of a forward that it has traced.

Steps are data. They name modules by path, so that modules of the same structure share one plan, and a plan can be
pickled. Running a plan computes what the traced forward computes as long as :meth:`Plan.objection` has nothing to say:
it looks again at everything that the trace has relied on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.arguments import Activation
from ..ops import checks
from . import prepared, trained
from .deferred import Deferred, add_act, conv, conv_bn, conv_bn_act, conv_bn_add_act, defer, materialise, max_pool, norm
from .recognise import (
    activation_reason,
    call_reason,
    conv_reason,
    max_pool_reason,
    norm_activation,
    norm_reason,
    nothing_reason,
    plain_norm_reason,
)

__all__ = [
    "ROLES",
    "AddStep",
    "CallStep",
    "ConvStep",
    "NormStep",
    "Plan",
    "Reads",
    "Ref",
    "Step",
    "at",
    "is_plain",
    "simple",
]

Path = tuple[str, ...]  # of a module below the one that the plan is for
Values = list[Any]  # of a running plan, by index

# What a plan relies on in a module that it does not call, by the part that the module plays.
ROLES: dict[str, Callable[[nn.Module], str | None]] = {
    "conv": conv_reason,
    "norm": norm_reason,
    "norm, act": plain_norm_reason,
    "act": activation_reason,
    "pool": max_pool_reason,
    "nothing": nothing_reason,
    "inlined": call_reason,
}


@dataclass(frozen=True)
class Ref:
    """Stands for a value of the running plan among the arguments of a call."""

    index: int


@dataclass(frozen=True)
class Step:
    """One step. ``out`` is the index of its value, ``free`` lists those that nothing reads after it."""

    out: int
    free: tuple[int, ...]

    def run(self, root: nn.Module, values: Values) -> Any:
        """The step's value."""
        raise NotImplementedError


@dataclass(frozen=True)
class ConvStep(Step):
    """Convolution, and what follows it: batch norm, residual add, activation, max pool, as far as there are."""

    x: int
    conv: Path
    bn: Path | None
    act: Path | Activation | None
    residual: int | None
    in_place: bool  # the add
    pool: Path | None
    keep_deferred: bool  # the one step that reads the value takes it raw

    def run(self, root: nn.Module, values: Values) -> Any:
        x, layer = values[self.x], at(root, self.conv)
        if self.bn is None:
            return conv(x, layer)
        bn, act = _norm_and_activation(root, self.bn, self.act)
        if self.residual is not None:
            residual = values[self.residual]
            if _is_like(residual, *_output_of(layer, x), self.in_place):
                return conv_bn_add_act(x, layer, bn, residual, act)
            return _stock_add_act(conv_bn(x, layer, bn), residual, act, self.in_place)
        if self.pool is not None:
            return max_pool(defer(x, layer, bn, act), at(root, self.pool))
        if act is None and not self.keep_deferred:
            return conv_bn(x, layer, bn)
        y = conv_bn_act(x, layer, bn, act)
        return y if self.keep_deferred else materialise(y)


@dataclass(frozen=True)
class NormStep(Step):
    """Batch norm and activation before the convolution that will apply them."""

    x: int
    bn: Path
    act: Path | Activation | None

    def run(self, root: nn.Module, values: Values) -> Any:
        return norm(values[self.x], *_norm_and_activation(root, self.bn, self.act))


@dataclass(frozen=True)
class AddStep(Step):
    """Residual add and activation."""

    x: int
    residual: int
    act: Path | Activation | None
    in_place: bool

    def run(self, root: nn.Module, values: Values) -> Any:
        x, residual, act = values[self.x], values[self.residual], _activation(root, self.act)
        raw = _tensor(x)
        if _is_like(residual, raw.shape, raw.dtype, self.in_place):
            return add_act(x, residual, act)
        return _stock_add_act(materialise(x), residual, act, self.in_place)


@dataclass(frozen=True)
class CallStep(Step):
    """A call that is left as it is: of a module, a function or a method, or the reading of an attribute."""

    op: str  # as of torch.fx.Node
    target: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def run(self, root: nn.Module, values: Values) -> Any:
        if self.op == "get_attr":
            return getattr(at(root, self.target[:-1]), self.target[-1])
        args = [_filled(a, values) for a in self.args]
        kwargs = {name: _filled(a, values) for name, a in self.kwargs}
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        function = at(root, self.target) if self.op == "call_module" else self.target
        return function(*args, **kwargs)


@dataclass(frozen=True)
class Reads:
    """What a traced forward has read of a module other than its layers: children, and attributes by value."""

    path: Path
    children: tuple[tuple[str, bool], ...]  # name, and whether there is one
    attributes: tuple[tuple[str, Any], ...]

    def objection(self, root: nn.Module) -> str | None:
        module = at(root, self.path)
        if tuple((name, child is not None) for name, child in module._modules.items()) != self.children:
            return "its layers are others than when it was fused"
        for name, value in self.attributes:
            now = getattr(module, name)
            if now is not value and now != value:
                return f"{'.'.join((*self.path, name))} was {value!r} when it was fused and is {now!r}"
        return None


@dataclass(frozen=True)
class Plan:
    """The steps, and all that they rely on. Values are numbered; the first ones are the arguments."""

    given: tuple[bool, ...]  # which arguments a call gives, None being none
    channels_last: tuple[int, ...]  # arguments that several fused steps read, brought there once
    size: int  # number of values
    steps: tuple[Step, ...]
    output: Any
    layers: tuple[tuple[Path, str], ...]  # modules that are not called, with their role
    reads: tuple[Reads, ...]
    constants: tuple[tuple[str, str, Any], ...]  # module, name and value of the globals that the forward reads
    fused: str  # what is fused, in words
    left: str  # what is not, and why

    def takes(self, args: Sequence[Any]) -> bool:
        """Whether this is the plan for a call with ``args``."""
        count = len(args)
        return count <= len(self.given) and self.given == tuple(
            i < count and args[i] is not None for i in range(len(self.given))
        )

    def objection(self, root: nn.Module) -> str | None:
        """Why this plan may compute something else than the forward of ``root`` as it is now, or None."""
        for module, name, value in self.constants:
            if attrgetter(name)(sys.modules[module]) != value:
                return f"{module}.{name} is another than when it was fused"
        for reads in self.reads:
            if (reason := reads.objection(root)) is not None:
                return reason
        for path, role in self.layers:
            if path and (reason := ROLES[role](at(root, path))) is not None:
                return f"{'.'.join(path)} {reason}"
        return None

    def run(self, root: nn.Module, args: Sequence[Any]) -> Any:
        """What the forward of ``root`` returns."""
        if not prepared.is_watched() and (layers := self._block(root)) is not None:
            args = (checks.channels_last(args[0]), *args[1:])
            out = (trained if torch.is_grad_enabled() else prepared).run(root, layers, args[0])
            if out is not None:
                return out
        values: Values = [None] * self.size
        for i, arg in enumerate(args):
            values[i] = checks.channels_last(arg) if i in self.channels_last else arg
        for step in self.steps:
            values[step.out] = step.run(root, values)
            for i in step.free:
                values[i] = None
        return _filled(self.output, values)

    def _block(self, root: nn.Module) -> list[prepared.Layer] | None:
        """The steps as the layers of one residual block, which can run as one call; None where they are not."""
        if self.given.count(True) != 1 or not self.given[0]:
            return None
        numbers, layers = {0: 0}, []  # of the block's values, by those of the plan
        for step in self.steps:
            is_last = step is self.steps[-1]
            if not isinstance(step, ConvStep) or step.bn is None or step.pool is not None:
                return None
            if step.keep_deferred is is_last or (step.residual is not None and not is_last):
                return None
            bn, act = _norm_and_activation(root, step.bn, step.act)
            residual = None if step.residual is None else numbers[step.residual]
            layers.append(prepared.Layer(at(root, step.conv), bn, act, numbers[step.x], residual))
            numbers[step.out] = len(layers)
        return layers if self.output == Ref(self.steps[-1].out) else None


def at(root: nn.Module, path: Path) -> Any:
    """The module at ``path`` below ``root``."""
    module = root
    for name in path:
        module = module._modules[name]  # type: ignore[assignment]
    return module


def simple(value: Any) -> bool:
    """Whether ``value`` is plain data, that compares and pickles by what it holds."""
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(simple, value))
    if isinstance(value, dict):
        return all(simple(k) and simple(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def is_plain(argument: Any) -> bool:
    """Whether ``argument`` is a tensor, None, or a list of these: what a plan was traced for."""
    if isinstance(argument, tuple | list):
        return all(map(is_plain, argument))
    return argument is None or isinstance(argument, Tensor)


def _norm_and_activation(root: nn.Module, path: Path, act: Path | Activation | None) -> tuple[Any, Any]:
    """The norm at ``path``, and ``act``, or what the norm itself ends with."""
    bn = at(root, path)
    return bn, norm_activation(bn) if act is None else _activation(root, act)


def _tensor(x: Tensor | Deferred) -> Tensor:
    return x.raw if isinstance(x, Deferred) else x


def _output_of(layer: nn.Conv2d, x: Tensor | Deferred) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of ``layer(x)``."""
    image = _tensor(x)
    assert not isinstance(layer.padding, str), "conv_reason has refused it"
    geometry = zip(image.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=False)
    size = [(s + 2 * p - d * (k - 1) - 1) // stride + 1 for s, p, d, k, stride in geometry]
    casts = _is_autocast(image) and image.dtype is not torch.float64
    dtype = torch.get_autocast_dtype(image.device.type) if casts else image.dtype
    return (image.shape[0], layer.out_channels, *size), dtype


def _is_like(residual: Any, shape: Sequence[int], dtype: torch.dtype, in_place: bool) -> bool:
    """Whether :func:`add_act` adds ``residual`` as stock does: nothing is broadcast, nor is the sum of another type."""
    if not isinstance(residual, Tensor | Deferred):
        return False
    tensor = _tensor(residual)
    return tuple(tensor.shape) == tuple(shape) and (tensor.dtype == dtype or (in_place and _is_autocast(tensor)))


def _is_autocast(x: Tensor) -> bool:
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _stock_add_act(x: Tensor, residual: Any, act: nn.Module | Activation | None, in_place: bool) -> Tensor:
    """``act(x + residual)`` [N, C, H, W], whatever can be added to ``x`` [N, C, H, W]."""
    residual = materialise(residual) if isinstance(residual, Deferred) else residual
    return add_act(x.add_(residual) if in_place else x + residual, None, act)


def _activation(root: nn.Module, act: Path | Activation | None) -> nn.Module | Activation | None:
    return act if act is None or isinstance(act, Activation) else at(root, act)


def _filled(argument: Any, values: Values) -> Any:
    """``argument`` with values for each :class:`Ref` in it."""
    if isinstance(argument, Ref):
        return values[argument.index]
    if isinstance(argument, tuple | list):
        filled = [_filled(a, values) for a in argument]
        return filled if isinstance(argument, list) else tuple(filled)
    if isinstance(argument, dict):
        return {key: _filled(a, values) for key, a in argument.items()}
    if isinstance(argument, slice):
        return slice(*(_filled(a, values) for a in (argument.start, argument.stop, argument.step)))
    return argument
