"""From tensors and records to the addresses and numbers that every native module takes."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import ACTIVATIONS, Activation, BatchNorm, MaxPool, accumulate_dtype

__all__ = ["DTYPES", "Norm", "activation", "gradient_vectors", "norm", "pointer", "pool_shape", "vector", "view"]

# The numbering is that of DType in csrc/shapes.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

Norm = tuple[int, int, int, int, float]  # addresses of mean, var, weight, bias; eps
_NO_NORM = (0, 0, 0, 0, 0.0)


def pointer(t: Tensor | None) -> int:
    """The address of a tensor's data; 0 for None."""
    return 0 if t is None else t.data_ptr()


def activation(activation: Activation) -> tuple[int, float]:
    """Its number and negative slope."""
    return ACTIVATIONS.index(activation.name), activation.negative_slope


def view(x: Tensor) -> tuple[int, int, int]:
    """[outer, channels, inner] of a dense tensor: see ChannelView in csrc/shapes.h."""
    n, c, h, w = x.shape
    return (n * h * w, c, 1) if x.is_contiguous(memory_format=torch.channels_last) else (n, c, h * w)


def pool_shape(x: Tensor, out: Tensor, pool: MaxPool) -> tuple[int, ...]:
    """The fields of PoolShape in csrc/shapes.h for x [N, C, H, W] and out [N, C, OH, OW]."""
    n, c, h, w = x.shape
    return n, h, w, c, out.shape[2], out.shape[3], *pool.kernel_size, *pool.stride, *pool.padding


def vector(v: Tensor | None) -> Tensor | None:
    """A vector of channels in its accumulation type, dense."""
    return None if v is None else _vector(v, accumulate_dtype(v.dtype))


def norm(bn: BatchNorm | None, dtype: torch.dtype) -> tuple[list[Tensor | None], Norm]:
    """The vectors of ``bn`` in the accumulation type, for the caller to keep alive, and their addresses with eps."""
    if bn is None:
        return [], _NO_NORM
    accumulate = accumulate_dtype(dtype)
    vectors = [None if v is None else _vector(v, accumulate) for v in bn[:4]]
    mean, var, weight, bias = (pointer(v) for v in vectors)
    return vectors, (mean, var, weight, bias, bn.eps)


def gradient_vectors(bn: BatchNorm | None, x: Tensor) -> Tensor | None:
    """Room for the gradients of a batch norm's four vectors, [4, C]."""
    return None if bn is None else torch.empty(4, x.shape[1], dtype=accumulate_dtype(x.dtype), device=x.device)


def _vector(v: Tensor, dtype: torch.dtype) -> Tensor:
    return v if v.dtype == dtype and v.is_contiguous() else v.detach().to(dtype).contiguous()
