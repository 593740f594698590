"""Which convolutions are matrix products of ours and which go to the vendor's library, in one table.

A 1x1 convolution in 16 bits is bound by memory: normalising while loading and statistics while storing save passes
over tensors. Larger filters are bound by arithmetic, where the vendor's library is ahead; float32 likewise. What was
tuned on the device comes before the table; ``FUSED_RESNET_TRITON_CONV=implicit_product|library`` before both.
"""

from __future__ import annotations

import os

from torch import Tensor

from ..arguments import Conv
from .tuning import CONV_KERNELS, choose

__all__ = ["implicit_product"]

# (filter, bytes of an element) -> kernel; with groups, the library.
CHOICE = {
    ("1x1", 2): "implicit_product",
    ("1x1", 4): "library",
    ("larger", 2): "library",
    ("larger", 4): "library",
}


def implicit_product(op: str, x: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Whether ``op`` is computed by the kernels of this package, rather than by the library's convolution."""
    forced = os.environ.get("FUSED_RESNET_TRITON_CONV")
    if forced and forced not in CONV_KERNELS:
        raise ValueError(f"FUSED_RESNET_TRITON_CONV: expected one of {', '.join(CONV_KERNELS)}, got {forced!r}")
    one_by_one = weight.shape[2] == weight.shape[3] == 1 and conv.padding == (0, 0)
    default = CHOICE["1x1" if one_by_one else "larger", x.element_size()] if conv.groups == 1 else "library"
    kernels = {name: name for name in CONV_KERNELS}
    return (forced or choose(f"{op}.kernel", kernels, default, x, weight.shape, *conv)) == "implicit_product"
