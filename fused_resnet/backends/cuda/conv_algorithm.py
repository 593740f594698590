"""Which way a convolution goes on CUDA: the one table of the choice.

``fused`` is the kernel of csrc/cuda/conv_forward.cu and its gradients, with everything around the convolution in its
prologue and epilogue; ``cudnn`` is PyTorch's convolution between passes of ours. The default is conservative, for no
GPU has measured it. ``FUSED_RESNET_CUDA_CONV=fused|cudnn`` overrules it wherever the kernel exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..arguments import Conv

__all__ = ["CONV_ALGORITHMS", "Geometry", "conv_algorithm"]

CONV_ALGORITHMS = ("fused", "cudnn")

_ENVIRONMENT = "FUSED_RESNET_CUDA_CONV"
_MOST = 2**29  # what the kernels count in 32 bits stays below it: see make_geometry in csrc/cuda/conv_dispatch.h


class Geometry(NamedTuple):
    """What the choice rests on."""

    conv: Conv
    x_shape: Sequence[int]  # N, C, H, W
    weight_shape: Sequence[int]  # K, C / groups, R, S
    dtype: torch.dtype

    @property
    def has_kernel(self) -> bool:
        """There is something to compute, and the fused kernels can."""
        n, _, height, width = self.x_shape
        out_height, out_width = self.conv.output_size((height, width), (self.weight_shape[2], self.weight_shape[3]))
        sizes = (n * height * width, n * out_height * out_width, self.x_shape[1], self.weight_shape[0])
        return self.dtype != torch.float64 and min(sizes) > 0 and max(sizes) < _MOST

    @property
    def is_one_by_one(self) -> bool:
        """1x1 without padding or groups, any stride: a matrix product."""
        return tuple(self.weight_shape[2:]) == (1, 1) and self.conv.padding == (0, 0) and self.conv.groups == 1

    @property
    def has_whole_chunks(self) -> bool:
        """Channels come in chunks of 16 bytes, which the kernels copy without touching a register."""
        return self.weight_shape[0] % 8 == self.weight_shape[1] % 8 == 0


# The first line that holds decides.
_TABLE: tuple[tuple[str, Callable[[Geometry], bool]], ...] = (
    ("cudnn", lambda g: not g.has_kernel),
    ("cudnn", lambda g: g.dtype not in (torch.float16, torch.bfloat16)),
    ("cudnn", lambda g: not g.has_whole_chunks),
    ("fused", lambda g: g.is_one_by_one),  # as a plain product it saves whole passes over x and y
    ("cudnn", lambda g: True),  # cuDNN's 3x3 is hard to beat; see docs/cuda-kernels.md
)


def conv_algorithm(geometry: Geometry) -> str:
    """``fused`` or ``cudnn``, for all passes of this convolution.

    Raises ValueError for an unknown name in ``FUSED_RESNET_CUDA_CONV``.
    """
    forced = os.environ.get(_ENVIRONMENT) or "auto"
    if forced not in ("auto", *CONV_ALGORITHMS):
        raise ValueError(f"{_ENVIRONMENT}: expected auto or one of {', '.join(CONV_ALGORITHMS)}, got {forced!r}")
    if forced == "auto":
        return next(name for name, holds in _TABLE if holds(geometry))
    return forced if geometry.has_kernel else "cudnn"
