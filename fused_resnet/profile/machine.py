"""The roof over a roofline: what the device multiplies and moves at best, measured."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import torch

from ..backends import backends

__all__ = ["bandwidth", "measured_roof"]

BYTES = 256 << 20  # of each of the three tensors: beyond any cache
RUNS = 5


def measured_roof(device: torch.device) -> dict[str, float | None]:
    """``flop_per_s`` of multiply-adds in fp32 on registers, None where no kernel measures it, and ``bytes_per_s``."""
    peak = None
    if device.type == "cpu" and backends()["cpu"].unavailable is None:
        peak = import_module("fused_resnet.bench.peak").multiply_add_peak("fp32", torch.get_num_threads())
    return {"flop_per_s": peak, "bytes_per_s": bandwidth(device)}


def bandwidth(device: torch.device) -> float:
    """Bytes a second of ``c = a + b`` on tensors larger than any cache: the best of ``RUNS`` runs."""
    a, b, c = (torch.ones(BYTES // 4, device=device) for _ in range(3))
    wait: Any = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    for _ in range(RUNS):
        wait()
        start = time.perf_counter()
        torch.add(a, b, out=c)
        wait()
        best = min(best, time.perf_counter() - start)
    return 3 * BYTES / best
