"""How exact a float32 convolution must be: the one setting, process-wide, that backends read."""

from __future__ import annotations

__all__ = ["PRECISIONS", "get_float32_conv_precision", "set_float32_conv_precision"]

PRECISIONS = ("high", "highest")

_precision = "high"


def set_float32_conv_precision(precision: str) -> None:
    """Sets how backends may compute float32 convolutions.

    ``"high"``, the default, allows algorithms that round more than direct convolution does, such as Winograd's;
    ``"highest"`` asks for direct convolution. A backend that has direct convolution alone, as ``reference``,
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
