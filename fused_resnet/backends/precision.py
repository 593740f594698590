"""How exact a float32 convolution must be: our setting, process-wide, and PyTorch's own, that backends read."""

from __future__ import annotations

import torch

__all__ = ["PRECISIONS", "get_float32_conv_precision", "set_float32_conv_precision", "tf32_is_allowed"]

PRECISIONS = ("high", "highest")

_precision = "high"


def set_float32_conv_precision(precision: str) -> None:
    """Sets how backends may compute float32 convolutions.

    ``"high"``, the default, allows algorithms that round more than direct convolution does: Winograd's, and products of
    16 of a float's 24 bits (bf16x3, as PyTorch's own "high" for matrix products). ``"highest"`` asks for direct
    convolution with all bits. A backend that has direct convolution alone, as ``reference``,
    computes the same under both.

    Raises ValueError for any other value.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision


def get_float32_conv_precision() -> str:
    """``"high"`` or ``"highest"``: see :func:`set_float32_conv_precision`."""
    return _precision


def tf32_is_allowed() -> bool:
    """Whether PyTorch lets a GPU's convolutions of float32 round to tf32, ten bits of mantissa; so then may ours."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
