"""A convolution's sizes as its kernels take them, and the memory layout of its filter."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import Conv

__all__ = ["Geometry", "Phases", "empty_output", "filter_krsc", "geometry"]


class Geometry(NamedTuple):
    """Sizes of a convolution; C and K are the channels of one group."""

    H: Any
    W: Any
    C: Any
    OH: Any
    OW: Any
    K: Any
    R: Any
    S: Any
    stride_h: Any
    stride_w: Any
    padding_h: Any
    padding_w: Any
    dilation_h: Any
    dilation_w: Any
    groups: Any


def geometry(x: Tensor, weight: Tensor, conv: Conv) -> Geometry:
    """The sizes of ``conv`` of x [N, C, H, W] with weight [K, C / groups, R, S]."""
    return _geometry(x.shape, weight.shape, conv)


@lru_cache(4096)  # every call of a layer has the same
def _geometry(x_shape: torch.Size, weight_shape: torch.Size, conv: Conv) -> Geometry:
    (_, _, height, width), (k, c, r, s) = x_shape, weight_shape
    output = conv.output_size((height, width), (r, s))
    return Geometry(
        height, width, c, *output, k // conv.groups, r, s, *conv.stride, *conv.padding, *conv.dilation, conv.groups
    )


class Phases(NamedTuple):
    """Along one axis, the pixels of x that the same taps reach: phase, phase + stride, ...

    Tap r reaches a phase where stride divides phase + padding - r dilation. With divisor = gcd(stride, dilation), which
    must divide phase + padding, those are the taps first, first + step, ...: step = stride / divisor and
    first = (phase + padding) / divisor * inverse mod step.
    """

    count: Any
    divisor: Any
    step: Any
    inverse: Any  # of dilation / divisor, modulo step

    @staticmethod
    @lru_cache(4096)  # every call of a layer has the same
    def of(size: int, stride: int, dilation: int) -> Phases:
        """The phases of ``size`` pixels."""
        divisor = gcd(stride, dilation)
        step = stride // divisor
        return Phases(min(stride, size), divisor, step, pow(dilation // divisor, -1, step))


def filter_krsc(
    weight: Tensor,  # [K, C / groups, R, S]
) -> Tensor:
    """``weight`` laid out as [K, R, S, C / groups]: its channels_last, copied where it lies otherwise."""
    return weight.detach().contiguous(memory_format=torch.channels_last)


def empty_output(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Room for y [N, K, OH, OW] in channels_last."""
    g = geometry(x, weight, conv)
    size = (x.shape[0], weight.shape[0], g.OH, g.OW)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
