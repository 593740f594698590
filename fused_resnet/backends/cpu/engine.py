"""A convolution as the C++ engine takes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Conv, accumulate_dtype
from . import native
from .conv_algorithm import CONV_ALGORITHMS, conv_algorithm

__all__ = ["Engine"]


Arguments = tuple[int, int, tuple[int, ...], tuple[int, ...], int]


class Engine(NamedTuple):
    """What every pass of one convolution takes."""

    arguments: Arguments  # the fields of ConvArgs in csrc/cpu/kernels.h
    weight: Tensor  # [K, C / groups, R, S] in the accumulation type, dense
    output_shape: tuple[int, int, int, int]  # N, K, OH, OW

    @staticmethod
    def of(x: Tensor, weight: Tensor, conv: Conv, keeps_filter: bool = False) -> Engine | None:
        """The engine for x [N, C, H, W] and weight [K, C / groups, R, S]; None where there is nothing to compute.

        ``keeps_filter``: the filter is packed for many calls, not for this one.
        """
        n, c, h, w = x.shape
        k, _, r, s = weight.shape
        height, width = conv.output_size((h, w), (r, s))
        if 0 in (n, c, h, w, k, r, s, height, width):
            return None
        algorithm = conv_algorithm(conv, weight.shape, (n, k, height, width), x.dtype, keeps_filter)
        weight = _dense(weight.detach().to(accumulate_dtype(weight.dtype)))
        shape = (n, h, w, c, height, width, k, r, s, *conv.stride, *conv.padding, *conv.dilation, conv.groups)
        number = CONV_ALGORITHMS.index(algorithm)
        arguments = (native.DTYPES[x.dtype], number, shape, weight.stride(), native.threads())
        return Engine(arguments, weight, (n, k, height, width))

    def weight_gradient_arguments(self, conv: Conv, dtype: torch.dtype) -> Arguments:
        """``arguments`` for the gradient of the filter, which another algorithm may compute."""
        algorithm = conv_algorithm(conv, self.weight.shape, self.output_shape, dtype, weight_gradient=True)
        return (self.arguments[0], CONV_ALGORITHMS.index(algorithm), *self.arguments[2:])

    def empty_output(self, x: Tensor) -> Tensor:
        """Room for the output, [N, K, OH, OW] in channels_last and the type of ``x``."""
        return native.empty_image(self.output_shape, x.dtype)


def _dense(weight: Tensor) -> Tensor:
    """The filter without gaps between its elements, which a slice of a larger one has."""
    return weight if torch.ops.aten.is_non_overlapping_and_dense(weight) else weight.contiguous()
