"""One convolution at a time, ours and stock PyTorch's: what the child process of a layer benchmark holds and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import cpu, reference
from ..backends.arguments import Activation, Conv
from .correctness import relative_error
from .geometry import Layer
from .peak import multiply_add_peak
from .settings import Job

__all__ = ["FORMS", "REFERENCE", "LayerTrial"]

WARM_UP_MS = 20.0
MEASUREMENT_MS = 5.0  # at least; a call that is shorter is repeated
IDENTITY = Activation("identity")


class Operands(NamedTuple):
    """The tensors of one layer in one memory format."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    y: Tensor  # [N, K, OH, OW]
    g: Tensor  # [N, K, OH, OW], the gradient of y
    conv: Conv

    def to(self, memory_format: torch.memory_format) -> Operands:
        x, weight, y, g = (tensor.contiguous(memory_format=memory_format) for tensor in self[:4])
        return Operands(x, weight, y, g, self.conv)


Pass = Callable[[Operands], Tensor]  # to y, or the gradient of x or of weight


class Form(NamedTuple):
    """A way to compute a convolution: its passes and the memory format of their operands."""

    passes: dict[str, Pass]
    memory_format: torch.memory_format


def _our_forward(o: Operands) -> Tensor:
    y: Tensor = cpu.bn_act_conv(o.x, None, IDENTITY, o.weight, None, o.conv, statistics=False)[0]
    return y


def _our_backward(o: Operands, mask: tuple[bool, bool, bool]) -> Tensor:
    mean = o.x.new_empty(0)  # without a gradient of the statistics nobody reads it
    return _only(cpu.bn_act_conv_backward(o.g, None, None, o.x, None, IDENTITY, o.weight, o.y, mean, o.conv, mask))


def _stock_backward(o: Operands, mask: tuple[bool, bool, bool]) -> Tensor:
    stride, padding, dilation, groups = o.conv
    return _only(
        torch.ops.aten.convolution_backward(
            o.g, o.x, o.weight, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
    )


def _stock_wgrad(o: Operands) -> Tensor:
    _, channels, *kernel = o.weight.shape
    strided_1x1 = kernel == [1, 1] and o.conv.stride != (1, 1)
    if strided_1x1 and channels < 16 and o.x.is_contiguous(memory_format=torch.channels_last):
        # PyTorch's own writes out of bounds there; the reference backend knows a way around.
        return _only(reference.convolution_backward(o.g, o.x, o.weight, o.conv, WGRAD))
    return _stock_backward(o, WGRAD)


def _only(gradients: Iterable[Tensor | None]) -> Tensor:
    """The one gradient that was asked for."""
    (gradient,) = (g for g in gradients if g is not None)
    return gradient


DGRAD, WGRAD = (True, False, False), (False, True, False)


OUR_PASSES: dict[str, Pass] = {
    "forward": _our_forward,
    "dgrad": lambda o: _our_backward(o, DGRAD),
    "wgrad": lambda o: _our_backward(o, WGRAD),
}
STOCK_PASSES: dict[str, Pass] = {
    "forward": lambda o: F.conv2d(o.x, o.weight, None, *o.conv),
    "dgrad": lambda o: _stock_backward(o, DGRAD),
    "wgrad": _stock_wgrad,
}
FORMS = {  # OURS and STOCK of geometry.py
    "ours": Form(OUR_PASSES, torch.channels_last),
    "channels_last": Form(STOCK_PASSES, torch.channels_last),
    "contiguous": Form(STOCK_PASSES, torch.contiguous_format),
}
REFERENCE = "contiguous"  # the form that the others are compared with


class LayerTrial:
    """The operands of one layer, and for one of its passes what each form calls. All of it in fp32 on the CPU."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.layer: Layer | None = None
        self.pass_name = ""
        self.operands: dict[str, Operands] = {}  # by form
        self.calls: dict[str, Callable[[], Tensor]] = {}  # by form
        self.repeats: dict[str, int] = {}  # calls in a measurement, by form

    def peak(self) -> float:
        """The peak that percentages are of, in FLOP/s."""
        return multiply_add_peak(self.job.dtype, self.job.threads)

    def prepare(self, layer: Layer, pass_name: str) -> dict[str, float]:
        """Makes ready for :meth:`measure`; the relative L2 error of each form against ``REFERENCE``."""
        if layer != self.layer:
            self._make_operands(layer)
        self.pass_name = pass_name
        self.calls = {name: partial(form.passes[pass_name], self.operands[name]) for name, form in FORMS.items()}
        with torch.no_grad():
            expected = self.calls[REFERENCE]()
            errors = {name: relative_error([call()], [expected]) for name, call in self.calls.items()}
            del expected
            self.repeats = {name: self._warm_up(call) for name, call in self.calls.items()}
        del errors[REFERENCE]
        return errors

    def measure(self, order: Sequence[str]) -> dict[str, float]:
        """Milliseconds a call of each form, one after the other in that order."""
        with torch.no_grad():
            return {name: _mean_ms(self.calls[name], self.repeats[name]) for name in order}

    def algorithm(self) -> str:
        """Our backend's choice for this pass of the layer."""
        layer = self.layer
        assert layer is not None, "prepare() comes first"
        return cpu.conv_algorithm(
            conv=layer.conv,
            weight_shape=layer.weight_shape,
            output_shape=layer.output_shape,
            dtype=torch.float32,
            weight_gradient=self.pass_name == "wgrad",
        )

    def _make_operands(self, layer: Layer) -> None:
        self.operands, self.calls = {}, {}  # before the next ones are made
        self.layer = layer
        generator = torch.Generator().manual_seed(self.job.seed)
        x, weight, g = (
            torch.randn(shape, generator=generator)
            for shape in (layer.input_shape, layer.weight_shape, layer.output_shape)
        )
        operands = Operands(x, weight, F.conv2d(x, weight, None, *layer.conv), g, layer.conv)
        formats = {form.memory_format: operands.to(form.memory_format) for form in FORMS.values()}
        self.operands = {name: formats[form.memory_format] for name, form in FORMS.items()}

    def _warm_up(self, call: Callable[[], Any]) -> int:
        """Calls for ``WARM_UP_MS``, one at least; how many calls make ``MEASUREMENT_MS``."""
        spent_ms = last_ms = _mean_ms(call, 1)
        while spent_ms < WARM_UP_MS:
            last_ms = _mean_ms(call, 1)
            spent_ms += last_ms
        return ceil(MEASUREMENT_MS / last_ms)


def _mean_ms(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) * 1e3 / count
