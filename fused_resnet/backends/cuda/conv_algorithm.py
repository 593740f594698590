"""Which way a convolution goes on CUDA.

``fused`` is the kernel of csrc/cuda/conv_forward.cu and its gradients; ``cudnn`` is PyTorch's convolution between
passes of ours. Where the kernel exists :mod:`..conv_choice` says which; ``FUSED_RESNET_CUDA_CONV=fused|cudnn``
overrules it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Conv
from ..choices import choose
from ..conv_choice import ConvKernels, is_bound_by_bytes

__all__ = ["CONV_KERNELS", "TILES", "conv_tile"]

CONV_KERNELS = ConvKernels("cuda", "FUSED_RESNET_CUDA_CONV", ours="fused", library="cudnn")

# The numbering is that of ConvTile in csrc/cuda/conv_launchers.h.
TILES = ("automatic", "small", "large")

_MOST = 2**29  # what the kernels count in 32 bits stays below it: see make_geometry in csrc/cuda/conv_dispatch.h


class _Facts(NamedTuple):
    """What follows from types and shapes alone."""

    has_kernel: bool  # there is something to compute, and the fused kernels can
    has_whole_chunks: bool  # of 16 bytes, which the kernels copy without touching a register
    is_ours_by_default: bool


def conv_tile(op: str, x: Tensor, weight: Tensor, conv: Conv) -> str | None:
    """The tile of our kernel for ``op`` on x [N, C, H, W], None where cuDNN is to compute it.

    Raises ValueError for an unknown name in ``FUSED_RESNET_CUDA_CONV``.
    """
    facts = _facts(x.dtype, x.shape, weight.shape, conv)
    if not facts.has_kernel or not CONV_KERNELS.is_ours(op, facts.is_ours_by_default, x, weight, conv):
        return None
    if x.element_size() == 4 or not facts.has_whole_chunks:  # of which there is one tile
        return TILES[0]
    return choose("cuda", f"{op}.tile", TILES[1:], TILES[0], x, weight, conv)


@lru_cache(4096)  # every call of a layer has the same
def _facts(dtype: torch.dtype, x_shape: torch.Size, weight_shape: torch.Size, conv: Conv) -> _Facts:
    (n, channels, height, width), (k, group_channels, r, s) = x_shape, weight_shape
    out_height, out_width = conv.output_size((height, width), (r, s))
    sizes = (n * height * width, n * out_height * out_width, channels, k)
    has_kernel = dtype != torch.float64 and min(sizes) > 0 and max(sizes) < _MOST
    has_whole_chunks = k // conv.groups % 8 == group_channels % 8 == 0
    return _Facts(has_kernel, has_whole_chunks, has_whole_chunks and is_bound_by_bytes(dtype, weight_shape, conv))
