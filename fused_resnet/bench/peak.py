"""The processor's peak, measured: multiply-adds on registers, with nothing to load."""

from __future__ import annotations

from .. import _cpu

__all__ = ["multiply_add_peak"]

RUN_S = 0.2
RUNS = 3

_DTYPES = {"fp32": 0, "fp64": 1}  # the numbering of csrc/shapes.h; half types are computed in fp32


def multiply_add_peak(dtype: str, threads: int) -> float:
    """FLOP/s, two for a multiply-add, of that many threads together: the best of ``RUNS`` runs."""
    return max(float(_cpu.multiply_add_peak(_DTYPES[dtype], threads, RUN_S)) for _ in range(RUNS))
