"""Rows of a benchmark's JSON from the times of its rounds: pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .settings import Job

__all__ = ["quantiles", "row", "speedup_vs_best_stock", "turn_order"]

Rounds = Sequence[Mapping[str, float]]  # of each round: step time in ms by variant


def turn_order(count: int, index: int) -> list[int]:
    """The order in which ``count`` variants take their turns in round ``index``: a Williams square.

    Over ``count`` rounds (twice as many where it is odd) each variant stands in each place, and follows each other one,
    equally often.
    """
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    order = [(index + step) % count for step in zigzag]
    return order[::-1] if index // count % 2 else order


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8))
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}


def speedup_vs_best_stock(rounds: Rounds, variant: str, stock: Collection[str]) -> float | None:
    """Median over rounds of the best stock step time of the round ÷ that of ``variant``; None without a stock one."""
    if not stock:
        return None
    return float(np.median([min(times[name] for name in stock) / times[variant] for times in rounds]))


def row(
    job: Job,
    allocator: str,
    rounds: Rounds,
    stock: Collection[str],
    saved_activation_bytes: int | None,
    peak_bytes: int,
) -> dict[str, Any]:
    """A row of the result; ``stock`` names the baselines among the variants of ``rounds``."""
    step_ms = [times[job.variant] for times in rounds]
    return {
        "model": job.model,
        "mode": job.mode,
        "batch": job.batch,
        "image_size": job.image_size,
        "dtype": job.dtype,
        "device": job.device,
        "threads": job.threads,
        "allocator": allocator,
        "variant": job.variant,
        "img_per_s": quantiles([1e3 * job.batch / time_ms for time_ms in step_ms]),
        "step_ms": quantiles(step_ms),
        "saved_activation_bytes": saved_activation_bytes,
        "peak_device_bytes" if job.device == "cuda" else "peak_rss_bytes": peak_bytes,
        "rounds": len(rounds),
        "speedup_vs_best_stock": None if job.variant in stock else speedup_vs_best_stock(rounds, job.variant, stock),
    }
