"""From tensors and records to the addresses and numbers that ``fused_resnet._cpu`` takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _cpu
from ..native_arguments import DTYPES, activation, gradient_vectors, norm, pointer, pool_shape, vector, view

__all__ = [
    "DTYPES",
    "activation",
    "advised",
    "empty",
    "empty_like",
    "gradient_vectors",
    "norm",
    "pointer",
    "pool_shape",
    "threads",
    "vector",
    "view",
]

_LARGE_BYTES = 4 << 20  # two huge pages


def threads() -> int:
    """As many threads as PyTorch uses."""
    return torch.get_num_threads()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Room for an image [N, C, H, W] in channels_last."""
    return advised(torch.empty(shape, dtype=dtype, memory_format=torch.channels_last))


def empty_like(x: Tensor) -> Tensor:
    """Room for an image in the type and layout of the dense ``x``."""
    return advised(torch.empty_like(x))


def advised(t: Tensor) -> Tensor:
    """A new tensor, in huge pages where it is large."""
    if t.nbytes >= _LARGE_BYTES:
        _cpu.advise_huge_pages(t.data_ptr(), t.nbytes)
    return t
