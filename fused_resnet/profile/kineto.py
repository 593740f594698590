"""A step under torch.profiler: operators, memory over time, and a trace that Chrome and Perfetto open."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .timeline import kind_of

__all__ = ["memory_curve", "merged_trace", "operator_rows", "profiled_step"]


def profiled_step(step: Callable[[], object], device: torch.device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the operators of one step, by their own time, and its trace as Chrome's JSON."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=True, record_shapes=True) as profiler:
        step()
    within = Counter(event.name for event in profiler.events() if _is_within_itself(event))
    rows = operator_rows(profiler.key_averages(), within, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text())
    return rows, trace


def operator_rows(averages: Iterable[Any], within: Mapping[str, int], device: torch.device) -> list[dict[str, Any]]:
    """Rows ``op, kind, calls, self_ms``, longest first; ``within`` counts the calls of an operator by itself.

    A device's kernels, which are averages too, are left out: their time is that of the operators that launched them.
    """
    rows = []
    for event in averages:
        own_us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if own_us > 0 and event.device_type == DeviceType.CPU and not event.key.startswith(("phase: ", "block: ")):
            calls = event.count - within.get(event.key, 0)
            rows.append({"op": event.key, "kind": kind_of(event.key), "calls": calls, "self_ms": own_us / 1e3})
    return sorted(rows, key=lambda row: -row["self_ms"])


def _is_within_itself(event: Any) -> bool:
    """Whether an operator runs within one of its name: ours come twice, with autograd and below it."""
    parent = event.cpu_parent
    while parent is not None and parent.name != event.name:
        parent = parent.cpu_parent
    return parent is not None


def memory_curve(trace: dict[str, Any], device: torch.device) -> list[list[float]]:
    """Bytes allocated on ``device`` since the trace began, as ``[ms, bytes]`` at each change."""
    kind = 1 if device.type == "cuda" else 0  # c10::DeviceType
    events = [e for e in trace["traceEvents"] if e.get("name") == "[memory]" and e["args"]["Device Type"] == kind]
    events.sort(key=lambda event: event["ts"])
    curve, total = [], 0
    for event in events:
        total += event["args"]["Bytes"]
        curve.append([(event["ts"] - events[0]["ts"]) / 1e3, float(total)])
    return curve


def merged_trace(traces: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The traces of all variants in one, side by side from time 0, each as a process with the variant's name."""
    merged: list[dict[str, Any]] = []
    for number, (variant, trace) in enumerate(traces.items(), start=1):
        events = [e for e in trace["traceEvents"] if "ts" in e and e.get("ph") != "M"]
        start = min((event["ts"] for event in events), default=0.0)
        merged.append({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": variant}})
        merged += [{**event, "pid": number, "ts": event["ts"] - start} for event in events]
    return {"traceEvents": merged, "displayTimeUnit": "ms"}
