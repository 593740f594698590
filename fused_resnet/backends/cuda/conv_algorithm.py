"""Which way a convolution goes on CUDA.

``fused`` is the kernel of csrc/cuda/conv_forward.cu and its gradients; ``cudnn`` is PyTorch's convolution between
passes of ours. Where the kernel exists :mod:`..conv_choice` says which; ``FUSED_RESNET_CUDA_CONV=fused|cudnn``
overrules it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import Conv
from ..choices import choose
from ..conv_choice import ConvKernels, is_bound_by_bytes, shape_of

__all__ = ["CONV_KERNELS", "TILES", "conv_tile"]

CONV_KERNELS = ConvKernels("cuda", "FUSED_RESNET_CUDA_CONV", ours="fused", library="cudnn")

# The numbering is that of ConvTile in csrc/cuda/conv_launchers.h.
TILES = ("automatic", "small", "large")

_MOST = 2**29  # what the kernels count in 32 bits stays below it: see make_geometry in csrc/cuda/conv_dispatch.h


def conv_tile(op: str, x: Tensor, weight: Tensor, conv: Conv) -> str | None:
    """The tile of our kernel for ``op`` on x [N, C, H, W], None where cuDNN is to compute it.

    Raises ValueError for an unknown name in ``FUSED_RESNET_CUDA_CONV``.
    """
    if not _has_kernel(x.dtype, x.shape, weight.shape, conv):
        return None
    # Channels in chunks of 16 bytes, which the kernels copy without touching a register.
    has_whole_chunks = weight.shape[0] // conv.groups % 8 == weight.shape[1] % 8 == 0
    by_default = has_whole_chunks and is_bound_by_bytes(x.dtype, weight.shape, conv)
    if not CONV_KERNELS.is_ours(op, by_default, x, weight, conv):
        return None
    if x.element_size() == 4 or not has_whole_chunks:  # of which there is one tile
        return TILES[0]
    return choose("cuda", f"{op}.tile", TILES[1:], TILES[0], x, *shape_of(x, weight, conv))


def _has_kernel(dtype: torch.dtype, x_shape: Sequence[int], weight_shape: Sequence[int], conv: Conv) -> bool:
    """There is something to compute, and the fused kernels can."""
    n, channels, height, width = x_shape
    out_height, out_width = conv.output_size((height, width), (weight_shape[2], weight_shape[3]))
    sizes = (n * height * width, n * out_height * out_width, channels, weight_shape[0])
    return dtype != torch.float64 and min(sizes) > 0 and max(sizes) < _MOST
