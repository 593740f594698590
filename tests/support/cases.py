"""Inputs for op tests, and the comparison of an op with its stock form in three types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_resnet.ops import BatchNorm

from .oracle import assert_close_three_way

__all__ = ["LAYOUTS", "TOLERANCE", "assert_op_matches_stock", "batch_norm", "image", "outputs_and_gradients"]

# Error beyond twice stock's, relative to the tensor's root mean square: the rounding of one stored value.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}

LAYOUTS = ("channels_last", "contiguous", "sliced")


def image(*shape: int, dtype: torch.dtype = torch.float32, layout: str = "channels_last") -> Tensor:
    """A random tensor of this shape: dense in one of two layouts, or a slice of a larger one."""
    if layout == "sliced":
        return torch.randn(shape[0], shape[1] + 2, shape[2], shape[3] + 1).to(dtype)[:, 1:-1, :, 1:]
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def batch_norm(channels: int, dtype: torch.dtype = torch.float32) -> BatchNorm:
    """Vectors of either sign where that is allowed, with a zero and a negative among the weights."""
    mean, weight, bias = (torch.randn(channels, dtype=dtype) for _ in range(3))
    weight[0] = 0
    return BatchNorm(mean, torch.rand(channels, dtype=dtype) + 0.5, weight, bias, 1e-5)


def _leaves(args: Sequence[Any], dtype: torch.dtype, statistics: torch.dtype) -> tuple[list[Any], list[Tensor]]:
    """Copies of ``args`` whose tensors are leaves that require gradients, images in ``dtype``, vectors in the other."""
    leaves: list[Tensor] = []

    def copy(a: Any, to: torch.dtype) -> Any:
        if isinstance(a, BatchNorm):
            return BatchNorm(*(v if v is None or isinstance(v, float) else copy(v, statistics) for v in a))
        if not isinstance(a, Tensor):
            return a
        # to() keeps strides, a slice of a larger tensor stays one
        leaf = a.detach().to(to) if a.dtype != to else a.detach()
        leaves.append(leaf.requires_grad_())
        return leaf

    return [copy(a, dtype) for a in args], leaves


def outputs_and_gradients(
    function: Callable[..., Any], args: Sequence[Any], kind: torch.dtype, dtype: torch.dtype
) -> tuple[list[Tensor], int]:
    """Outputs of ``function(*args)`` computed in ``kind``, then the gradient of every tensor; how many are outputs.

    The gradients that come in are the same for every kind: random, and rounded to ``dtype``.
    """
    inputs, leaves = _leaves(args, kind, torch.float64 if kind == torch.float64 else torch.float32)
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    grads = [torch.randn(o.shape, generator=generator, device=o.device).to(dtype).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)], len(outputs)


def assert_op_matches_stock(
    ours: Callable[..., Any],
    stock: Callable[..., Any],
    args: Sequence[Any],
    dtype: torch.dtype,
    atol: float | None = None,
) -> None:
    """Outputs and every gradient of ``ours(*args)`` against ``stock`` in float64, beside ``stock`` in ``dtype``.

    ``atol`` is the error allowed beyond twice stock's; ``TOLERANCE`` unless told.
    """
    atol = TOLERANCE[dtype] if atol is None else atol
    kinds = ((ours, dtype), (stock, dtype), (stock, torch.float64))
    results = [outputs_and_gradients(function, args, kind, dtype) for function, kind in kinds]
    count = results[0][1]
    for i, (got, stock_got, want) in enumerate(zip(*(tensors for tensors, _ in results), strict=True)):
        assert got.dtype == stock_got.dtype
        # A mean is a sum that may cancel: its error counts against the size of what it is the mean of.
        is_mean = count == 3 and i == 1
        least_scale = results[2][0][0].square().mean().sqrt().item() if is_mean else 0.0
        assert_close_three_way(got, stock_got, want, atol=atol, name=f"tensor {i}", least_scale=least_scale)
