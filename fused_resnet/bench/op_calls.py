"""The distinct calls of our ops in a fused model, found without computing one, and the tensors to repeat them with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..backends import use_backend
from ..fuse import fuse
from ..models.registry import create_model
from .child import BenchError
from .geometry import Layer

__all__ = ["OpCall", "op_calls"]

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups")


class OpCall(NamedTuple):
    """A call of ``torch.ops.fused_resnet.<op>``; its tensors are on the meta device."""

    op: str
    arguments: dict[str, Any]  # by the names of the schema
    is_first: bool  # its x is the model's input, which needs no gradient

    @property
    def shape(self) -> tuple[object, ...]:
        """What tells it from another call, but for what its prologue and epilogue do."""
        tensors = (self.arguments.get(name) for name in ("x", "weight"))
        geometry = (self.arguments.get(name) for name in _GEOMETRY)
        return self.op, *(None if t is None else t.shape for t in tensors), *map(str, geometry)

    @property
    def text(self) -> str:
        """The convolution as in :attr:`.geometry.Layer.text`, else channels and size of x."""
        a, (n, c, h, w) = self.arguments, self.arguments["x"].shape
        if "weight" not in a:
            return f"{c} {h}x{w}"
        k, _, r, s = a["weight"].shape
        stride, padding, dilation = ((a[name][0], a[name][1]) for name in ("stride", "padding", "dilation"))
        return Layer(n, c, k, r, s, stride, padding, dilation, a["groups"], h, w).text

    def functions(
        self, dtype: torch.dtype, device: torch.device, training: bool
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The op and, in training, its backward, by name, on random tensors: images in ``dtype``, vectors float32."""
        arguments = [_random(name, value, dtype, device) for name, value in self.arguments.items()]
        yield self.op, partial(_op(self.op), *arguments)
        if training and self.op != "conv_bn_add_act":
            with use_backend("reference"):
                outputs = _op(self.op)(*arguments)
            gradients = self._gradients(outputs if isinstance(outputs, tuple) else (outputs,))
            if "bias" in self.arguments:
                arguments[list(self.arguments).index("bias")] = None  # backward has no use for its values
            yield f"{self.op}_backward", partial(_op(f"{self.op}_backward"), *gradients, *arguments)

    def _gradients(self, outputs: tuple[Tensor, ...]) -> list[Any]:
        """What the backward op takes before the arguments of forward."""
        g = torch.randn_like(outputs[0])
        if self.op == "bn_act_max_pool":
            return [g, outputs[1]]
        if self.op == "bn_add_act":
            return [g]
        y, mean, _ = outputs
        g_mean, g_var = (torch.randn_like(mean) if self.arguments["statistics"] else None for _ in range(2))
        return [g, g_mean, g_var, y, mean, [not self.is_first, True, self.arguments["bias"] is not None]]


def op_calls(model: str, batch: int, image_size: int, training: bool) -> list[OpCall]:
    """The distinct calls of a model by name, fused, in the order they come in.

    Of those that differ in prologue or epilogue alone it is the one with most to do. Raises BenchError where the model
    does not run for these images, or has nothing that is fused.
    """
    built = create_model(model).to("meta").train(training)
    fuse(built)
    images = torch.empty(batch, 3, image_size, image_size, device="meta")  # [N, 3, S, S]
    try:
        with torch.no_grad(), _Recorder(images) as recorder:
            built(images)
    except (RuntimeError, ValueError, AssertionError) as error:  # what models say to images that are too small
        raise BenchError(f"{model} does not run for images of {image_size}x{image_size}: {error}") from error
    if not recorder.calls:
        raise BenchError(f"tune: expected a model with something to fuse, got {model} with nothing")
    distinct: dict[tuple[object, ...], OpCall] = {}
    for call in recorder.calls:
        known = distinct.setdefault(call.shape, call)
        if _tensors(call) > _tensors(known):
            distinct[call.shape] = call
    return list(distinct.values())


class _Recorder(TorchDispatchMode):
    """Within its ``with`` block, notes the calls of our ops."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.calls: list[OpCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fused_resnet":
            arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=True))
            is_first = arguments["x"].shape == self.images.shape
            self.calls.append(OpCall(func._schema.name.split("::")[1], arguments, is_first))
        return func(*args, **kwargs or {})


def _op(name: str) -> Callable[..., Any]:
    op: Callable[..., Any] = getattr(torch.ops.fused_resnet, name).default
    return op


def _tensors(call: OpCall) -> int:
    return sum(isinstance(a, Tensor) for a in call.arguments.values())


def _random(name: str, value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 1:
        return torch.rand(value.shape, device=device, dtype=dtype if name == "bias" else None) + 0.5
    scale = value[0].numel() ** -0.5 if name == "weight" else 1.0  # keeps the deviation of its output near 1
    image = torch.randn(value.shape, device=device) * scale
    return image.to(dtype).contiguous(memory_format=torch.channels_last)
