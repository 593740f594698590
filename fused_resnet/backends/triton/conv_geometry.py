"""A convolution's sizes as its kernels take them, and the memory layout of its filter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import Conv

__all__ = ["Geometry", "empty_output", "filter_krsc", "geometry"]


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
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    output = conv.output_size(size, kernel)
    channels = weight.shape[0] // conv.groups
    return Geometry(
        *size, weight.shape[1], *output, channels, *kernel, *conv.stride, *conv.padding, *conv.dilation, conv.groups
    )


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
