"""Which convolutions are matrix products of ours: see :mod:`..conv_choice`.

``FUSED_RESNET_TRITON_CONV=implicit_product|library`` overrules it.
"""

from __future__ import annotations

from torch import Tensor

from ..arguments import Conv
from ..conv_choice import ConvKernels, is_bound_by_bytes

__all__ = ["CONV_KERNELS", "implicit_product"]

CONV_KERNELS = ConvKernels("triton", "FUSED_RESNET_TRITON_CONV", ours="implicit_product", library="library")


def implicit_product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Whether ``op`` is computed by the kernels of this package, rather than by the library's convolution."""
    return CONV_KERNELS.is_ours(op, is_bound_by_bytes(x.dtype, weight.shape, conv), x, weight, conv)
