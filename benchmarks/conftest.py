"""How a benchmark here is measured: 15 rounds, and the bytes that must move beside the time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """``measure(function, group=..., least_bytes=...)``: times it, and enters GB/s of the bytes that must move.

    ``least_bytes`` counts each tensor once for each time a perfect kernel must read or write it, whatever the variant
    really moves; so the figures of fused and stock compare as the times do.
    """
    torch.manual_seed(0)

    def run(function: Callable[[], Any], group: str, least_bytes: int) -> None:
        benchmark.group = group
        benchmark.pedantic(function, rounds=15, warmup_rounds=3)
        benchmark.extra_info["least_bytes"] = least_bytes
        benchmark.extra_info["GB_per_s"] = round(least_bytes / benchmark.stats.stats.median / 1e9, 2)
        benchmark.extra_info["threads"] = torch.get_num_threads()

    return run
