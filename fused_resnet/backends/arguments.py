"""Plain records that ops and backends hand to each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm",
    "Conv",
    "MaxPool",
    "PreparedLayer",
    "TrainedLayer",
    "accumulate_dtype",
    "memory_format",
]

# The order is the numbering of csrc/activation.h.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "relu6", "silu", "hardswish", "gelu")


class BatchNorm(NamedTuple):
    """A batch norm as data: ``norm(x) = weight / sqrt(var + eps) * (x - mean) + bias``.

    In training ``mean`` and ``var`` are the batch statistics that the convolution before it returned, in evaluation
    the running statistics. ``weight`` and ``bias`` are None where there is no affine transform (1 and 0).
    """

    mean: Tensor  # [C]
    var: Tensor  # [C], biased
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    eps: float

    @staticmethod
    def optional(mean: Tensor | None, *rest: Any) -> BatchNorm | None:
        """The batch norm of these fields; None where there is no ``mean``."""
        return None if mean is None else BatchNorm(mean, *rest)


class Activation(NamedTuple):
    """An activation by name; ``negative_slope`` is read by ``leaky_relu`` alone."""

    name: str
    negative_slope: float = 0.01


class Conv(NamedTuple):
    """Geometry of a 2-d convolution, in pixels; padding is with zeros."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the output for an input of ``size`` and a filter of ``kernel`` pixels."""
        height, width = (
            (s + 2 * p - d * (k - 1) - 1) // stride + 1
            for s, p, d, k, stride in zip(size, self.padding, self.dilation, kernel, self.stride, strict=True)
        )
        return height, width


class MaxPool(NamedTuple):
    """Geometry of a 2-d max pooling, in pixels; padding is with -inf."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the output for an input of ``size`` pixels."""
        return Conv(self.stride, self.padding, (1, 1), 1).output_size(size, self.kernel_size)


class PreparedLayer(NamedTuple):
    """Arguments of conv_bn_add_act and of a max pool after it, made ready; ``x`` counts by its shape and type alone.

    Values are numbered: first those that each call gives, then the outputs of the layers.
    """

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    bn: BatchNorm  # [K]
    activation: Activation
    conv: Conv
    x_value: int
    residual_value: int | None
    pool: MaxPool | None  # of the output


class TrainedLayer(NamedTuple):
    """The numbers of a convolution in training and of the batch norm and activation after it.

    Value 0 is the input of all, value i + 1 the output of layer i.
    """

    eps: float
    momentum: float
    activation: Activation
    conv: Conv
    x_value: int


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type statistics and sums are kept in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of a dense [N, C, H, W]; channels_last where it is both."""
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
