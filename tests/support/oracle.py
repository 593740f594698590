"""The oracle: ours and stock PyTorch in one type, both against float64, by the root mean square of their errors."""

from __future__ import annotations

from torch import Tensor

__all__ = ["assert_close_three_way", "relative_error"]


def relative_error(a: Tensor, ref64: Tensor, least_scale: float = 0.0) -> float:
    """Root mean square of ``a - ref64`` over that of ``ref64``; not relative where ``ref64`` is all zeros.

    ``least_scale`` is the least root mean square to divide by.
    """
    ref64 = ref64.double()
    scale = ref64.norm().clamp_min(least_scale * ref64.numel() ** 0.5)
    return ((a.double() - ref64).norm() / (scale if scale > 0 else 1.0)).item()


def assert_close_three_way(
    ours: Tensor,
    stock: Tensor,
    ref64: Tensor,
    factor: float = 2.0,
    atol: float = 1e-6,
    name: str = "tensor",
    least_scale: float = 0.0,
) -> None:
    """``error(ours) <= factor * error(stock) + atol``, both :func:`relative_error` against ``ref64``."""
    assert ours.shape == ref64.shape, f"{name}: expected shape {list(ref64.shape)}, got {list(ours.shape)}"
    ours_error, stock_error = (relative_error(t, ref64, least_scale) for t in (ours, stock))
    assert ours_error <= factor * stock_error + atol, f"{name}: error {ours_error:.3g}, stock has {stock_error:.3g}"
