"""From tensors and records to the addresses and numbers that ``fused_resnet._cpu`` takes, and room for its results."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ... import _cpu
from ..native_arguments import DTYPES, activation, gradient_vectors, norm, pointer, pool_shape, vector, view

__all__ = [
    "DTYPES",
    "activation",
    "empty",
    "empty_image",
    "empty_like",
    "gradient_vectors",
    "norm",
    "pointer",
    "pool_shape",
    "threads",
    "vector",
    "view",
]

# Of tensors whose memory is kept when they are freed.
_LARGE_BYTES = float("inf") if os.environ.get("FUSED_RESNET_KEEP_MEMORY") == "0" else 1 << 20

# Type code and bits as DLPack has them.
_DLPACK = {
    torch.uint8: (1, 8),
    torch.float16: (2, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.bfloat16: (4, 16),
}


def threads() -> int:
    """As many threads as PyTorch uses."""
    return torch.get_num_threads()


def empty_image(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Room for an image [N, C, H, W] in channels_last."""
    _, c, h, w = shape
    return empty(shape, (c * h * w, 1, c * w, c), dtype)


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a tensor of the shape and layout of the dense ``x``."""
    return empty(x.shape, x.stride(), dtype or x.dtype)


def empty(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Room for a dense tensor; where it is large, in memory that is kept when it is freed: csrc/cpu/tensor_memory.h."""
    if math.prod(shape) * dtype.itemsize >= _LARGE_BYTES:
        capsule = _cpu.empty_tensor(*_DLPACK[dtype], shape, stride)
        if capsule is not None:
            return from_dlpack(capsule)
    return torch.empty_strided(shape, stride, dtype=dtype)
