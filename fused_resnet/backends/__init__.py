"""The backends and the choice between them.

A backend is a module with the functions of :mod:`.reference` and no state. The default is the first available one of
``DEFAULT_ORDER`` for the device; :func:`use_backend` or the environment variable ``FUSED_RESNET_BACKEND`` ask for one
by name. A case that a backend lacks goes to ``reference``, with one warning for each reason: see :func:`fallbacks`.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Conv, PreparedLayer, TrainedLayer

__all__ = [
    "Backend",
    "available_backends",
    "backends",
    "choose",
    "empty_cache",
    "fallbacks",
    "prepare_convs",
    "prepare_training",
    "register",
    "requested_backend",
    "use_backend",
]


class Backend(NamedTuple):
    """A backend's name, the module that implements it, the device types it serves and why it is absent, if it is."""

    name: str
    module: str
    devices: tuple[str, ...]
    unavailable: str | None


DEFAULT_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_NOT_BUILT = "native modules are built where a C++ compiler is found at install time"

_requested: ContextVar[str | None] = ContextVar("fused_resnet_backend", default=None)
_fallbacks: dict[str, int] = {}


@cache
def backends() -> dict[str, Backend]:
    """Every backend by name, those absent on this machine with the reason."""
    return {
        "reference": Backend("reference", "reference", ("cpu", "cuda", "meta"), None),
        "cpu": Backend("cpu", "cpu", ("cpu",), _why_not_importable("fused_resnet._cpu", _NOT_BUILT)),
        "cuda": Backend("cuda", "cuda", ("cuda",), _why_no_cuda()),
        "triton": Backend("triton", "triton", _triton_devices(), _why_not_importable("triton", "pip install triton")),
    }


def register(backend: Backend) -> None:
    """Adds a backend beside the package's own, to be asked for by name; no device defaults to it.

    The tests run the Python and C++ of ``cuda`` on CPU tensors through one. Raises ValueError where the name is taken.
    """
    if backend.name in backends():
        raise ValueError(f"backend: expected a name that is not taken, got {backend.name!r}")
    backends()[backend.name] = backend


def available_backends() -> tuple[str, ...]:
    """Names of the backends that work on this machine."""
    return tuple(name for name, backend in backends().items() if backend.unavailable is None)


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within this context ops run on the backend of that name, their backward too; None leaves it to the device.

    Raises ValueError for a name that is unknown or not available. A compiled model asks at run time, so the context
    counts there as it does in eager mode.
    """
    token = _requested.set(name if name is None else _checked(name, "use_backend"))
    try:
        yield
    finally:
        _requested.reset(token)


def requested_backend() -> str | None:
    """The name asked for by :func:`use_backend` or ``FUSED_RESNET_BACKEND``, else None."""
    name = _requested.get()
    if name is None and (name := os.environ.get("FUSED_RESNET_BACKEND") or None):
        _checked(name, "FUSED_RESNET_BACKEND")
    return name


def choose(op: str, x: Tensor, *convolution: Any) -> Callable[..., Any]:
    """The function that computes ``op`` for ``x`` [N, C, H, W], of the backend asked for or the device's default.

    ``convolution``, where the op is one, is its weight [K, C / groups, R, S] and :class:`.arguments.Conv`.
    """
    name = requested_backend() or _default(x.device.type)
    backend = backends()[name]
    if x.device.type in backend.devices:
        reason = _module(name).unsupported(op, x, *convolution)
    else:
        reason = f"serves {', '.join(backend.devices)} tensors, not {x.device.type}"
    if reason is not None:
        _report_fallback(f"backend {name!r}, {op}: {reason}")
        name = "reference"
    return getattr(_module(name), op)


def prepare_convs(given: int, layers: Sequence[PreparedLayer]) -> Callable[..., Any] | None:
    """One function for all these layers of conv_bn_add_act, of the backend asked for or the device's default.

    It takes the values that are given, so many, and returns the last layer's output. None where the backend
    has nothing to prepare, or lacks a layer.
    """
    cases = [(a.x, a.weight, a.conv) for a in layers]
    call: Callable[..., Any] | None = _prepare("prepare_convs", "conv_bn_add_act", cases, given, layers)
    return call


def prepare_training(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], layers: Sequence[TrainedLayer], residual: int | None
) -> Any:
    """These layers of bn_act_conv, and bn_add_act behind them, as one object with ``forward`` and ``backward``.

    See :class:`.cpu.training_block.TrainingBlock`. ``inputs`` [N, C, H, W] and ``weights`` [K, C / groups, R, S] count
    by their shapes, strides and types; ``residual`` is the number of the value that is added, if any. None where the
    backend has nothing to prepare, or lacks a layer.
    """
    cases = [(x, weight, a.conv) for x, weight, a in zip(inputs, weights, layers, strict=True)]
    return _prepare("prepare_training", "bn_act_conv", cases, inputs, weights, layers, residual)


def _prepare(function: str, op: str, cases: Sequence[tuple[Tensor, Tensor, Conv]], *args: Any) -> Any:
    device = cases[0][0].device.type
    name = requested_backend() or _default(device)
    prepare = getattr(_module(name), function, None)
    if prepare is None or device not in backends()[name].devices:
        return None
    if any(_module(name).unsupported(op, *case) for case in cases):
        return None
    return prepare(*args)


def empty_cache() -> None:
    """Gives the memory that backends hold on to back to the system: that of freed tensors, and the engine's.

    On CPU the memory of large tensors stays for the next ones when they are freed, as it does on CUDA devices:
    see csrc/cpu/tensor_memory.h. Afterwards the next step takes longer, once.
    """
    for name in available_backends():
        if hasattr(_module(name), "empty_cache"):
            _module(name).empty_cache()


def fallbacks() -> dict[str, int]:
    """What went to ``reference`` for want of a kernel: reason and number of calls."""
    return dict(_fallbacks)


def _checked(name: str, source: str) -> str:
    if name not in backends():
        raise ValueError(f"{source}: expected a backend of {', '.join(backends())}, got {name!r}")
    reason = backends()[name].unavailable
    if reason is not None:
        raise ValueError(f"{source}: backend {name!r} is not available here: {reason}")
    return name


@cache
def _default(device: str) -> str:
    return next((name for name in DEFAULT_ORDER.get(device, ()) if name in available_backends()), "reference")


@cache
def _module(name: str) -> Any:
    return importlib.import_module(f".{backends()[name].module}", __name__)


def _why_not_importable(module: str, way_out: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{error} ({way_out})"
    return None


def _why_no_cuda() -> str | None:
    way_out = "built where nvcc is found at install time, on PATH or under CUDA_HOME"
    reason = _why_not_importable("fused_resnet._cuda", way_out)
    return reason or (None if torch.cuda.is_available() else "no CUDA device")


def _triton_devices() -> tuple[str, ...]:
    return ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def _report_fallback(reason: str) -> None:
    if reason not in _fallbacks:
        _fallbacks[reason] = 0
        warnings.warn(f"fused_resnet runs on the reference path: {reason}", RuntimeWarning, stacklevel=2)
    _fallbacks[reason] += 1
