"""From tensors and records to the addresses, the stream and the module that a launch takes."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..native_arguments import DTYPES, Norm, activation, gradient_vectors, norm, pointer, pool_shape, vector, view

__all__ = [
    "DTYPES",
    "Norm",
    "activation",
    "gradient_vectors",
    "kernels",
    "norm",
    "pointer",
    "pool_shape",
    "queue",
    "serve",
    "vector",
    "view",
    "workspace",
]

_modules: dict[str, ModuleType] = {}


def serve(device: str, module: ModuleType) -> None:
    """From now on tensors of this device type are served by ``module``, which has the functions of ``_cuda.pyi``.

    For the tests, whose module runs the same kernels on CPU tensors.
    """
    _modules[device] = module


def kernels(x: Tensor) -> ModuleType:
    """The module whose kernels serve the device of ``x``."""
    device = x.device.type
    if device not in _modules:
        _modules[device] = importlib.import_module("fused_resnet._cuda")
    return _modules[device]


def queue(x: Tensor) -> tuple[int, int]:
    """Index of the device of ``x`` and PyTorch's current stream there, as cudaStream_t."""
    if x.device.type != "cuda":
        return 0, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def workspace(x: Tensor, nbytes: int) -> Tensor:
    """Working memory of a launch, on the device of ``x``; PyTorch's allocator keeps it until the stream is past it."""
    return torch.empty(nbytes, dtype=torch.uint8, device=x.device)
