"""Milliseconds of calls on the device that they run on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

__all__ = ["median_ms"]

# More than any L2 cache holds: in a network a tensor was last used long ago. It also gives the host time to queue the
# call behind, so that the gap before a launch is not measured.
_FLUSH_BYTES = 512 << 20


def median_ms(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """The median over ``rounds`` in which the calls take turns; by CUDA events on a CUDA device.

    Every call must have run before, so that nothing is compiled here.
    """
    measure = _on_cuda if device.type == "cuda" else _on_cpu
    return measure(calls, device, rounds)


def _on_cpu(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            ms[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in ms.items()}


def _on_cuda(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    with torch.cuda.device(device):
        flushed = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                flushed.zero_()
                pair[0].record()
                call()
                pair[1].record()
                events[name].append(pair)
        torch.cuda.synchronize(device)
    return {name: median(begin.elapsed_time(end) for begin, end in pairs) for name, pairs in events.items()}
