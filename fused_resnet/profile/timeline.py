"""The operators of one step in time, each with its kind, phase and block, from a trace of torch.profiler.

The step leaves marks in its own trace, :func:`mark`; what begins behind a mark belongs to it. What a device ran belongs
to the operator that launched it, which it is tied to by the number of the launch.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import Any

from torch.profiler import record_function

from .blocks import HEAD, STEM

__all__ = ["LEAST_MS", "kernel_rows", "kind_of", "mark", "timeline"]

LEAST_MS = 0.01  # shorter operators are left out: they are many, and no picture shows them

# What an operator does, by the first of these that its name contains.
KINDS = (
    ("bn_act_conv", "convolution and norm"),
    ("conv_bn_add_act", "convolution and norm"),
    ("bn_add_act", "norm, add, activation"),
    ("max_pool", "pooling"),
    ("avg_pool", "pooling"),
    ("conv", "convolution"),
    ("batch_norm", "norm"),
    ("threshold_backward", "activation"),
    ("relu", "activation"),
    ("silu", "activation"),
    ("Optimizer.step", "optimizer"),
    ("_foreach", "optimizer"),
    ("linear", "matrix product"),
    ("mm", "matrix product"),
    ("add", "add"),
)

KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")  # Kineto's categories of what runs on a device
ON_DEVICE = (*KERNELS, "gpu_user_annotation")

Row = dict[str, Any]


def kind_of(op: str) -> str:
    """What an operator does, in words."""
    return next((kind for part, kind in KINDS if part in op), "other")


def mark(what: str, name: str) -> None:
    """Leaves a mark in the trace that torch.profiler takes now: the ``what`` (phase or block) of that name begins."""
    with record_function(f"{what}: {name}"):
        pass


def timeline(trace: Row) -> list[Row]:
    """Rows ``op, kind, phase, block, start_ms, ms`` of the outermost operators, in the order of their start.

    Time counts from the first phase's mark; what runs before it is no part of the step.
    """
    return [row for row in _Step(trace).operators() if row["ms"] >= LEAST_MS]


def kernel_rows(trace: Row) -> list[Row]:
    """Rows ``kernel, op, phase, block, calls, ms`` of what a device ran in the step, copies included, longest first.

    ``op`` is the outermost operator that launched it, "" where none did. A trace of the CPU has no such rows.
    """
    step = _Step(trace)
    operators = step.operators()
    starts = [row["start_ms"] for row in operators]
    launches = {e["args"]["correlation"]: e["ts"] for e in step.host if "correlation" in e.get("args", {})}
    total: dict[tuple[str, ...], Row] = {}
    for event in step.device:
        launched = launches.get(event["args"].get("correlation"), event["ts"])
        if not step.phases or launched < step.start:
            continue
        when = step.ms(launched)
        before = operators[: bisect_right(starts, when)][-1:]
        op = next((row["op"] for row in before if when < row["start_ms"] + row["ms"]), "")
        names = {"kernel": event["name"], "op": op, **step.place(launched)}
        row = total.setdefault(tuple(names.values()), {**names, "calls": 0, "ms": 0.0})
        row["calls"] += 1
        row["ms"] += event["dur"] / 1e3
    return sorted(total.values(), key=lambda row: -row["ms"])


class _Step:
    """The events of a trace in the order of their start: the host's, the device's, and the marks among the former."""

    def __init__(self, trace: Row) -> None:
        events = sorted(
            (event for event in trace["traceEvents"] if event.get("ph") == "X"),
            key=lambda event: (event["ts"], -event["dur"]),
        )
        self.host = [event for event in events if event.get("cat") not in ON_DEVICE]
        self.device = [event for event in events if event.get("cat") in KERNELS]
        self.phases = _marks(self.host, "phase")
        self.blocks = _with_phases(self.phases, _marks(self.host, "block"))
        self.start = self.phases[0][0] if self.phases else float("inf")

    def ms(self, when: float) -> float:
        """Since the step began."""
        return (when - self.start) / 1e3

    def place(self, when: float) -> Row:
        """The phase and the block that ran then."""
        return {"phase": _at(self.phases, when), "block": _at(self.blocks, when)}

    def operators(self) -> list[Row]:
        """Rows of the outermost operators, the shortest too."""
        rows: list[Row] = []
        busy_until = self.start
        for event in self.host:
            if not _is_operator(event["name"]) or event["ts"] < busy_until:
                continue
            busy_until = event["ts"] + event["dur"]
            names = {"op": event["name"], "kind": kind_of(event["name"]), **self.place(event["ts"])}
            rows.append({**names, "start_ms": self.ms(event["ts"]), "ms": event["dur"] / 1e3})
        return rows


def _is_operator(name: str) -> bool:
    is_named = "::" in name and " " not in name and not name.startswith("torch::autograd::")
    return is_named or name.startswith("Optimizer.step")


def _marks(events: list[Row], what: str) -> list[tuple[float, str]]:
    """When each mark of this sort was left, in the trace's time, and its name."""
    return [
        (event["ts"], event["name"].partition(": ")[2]) for event in events if event["name"].startswith(f"{what}: ")
    ]


def _with_phases(phases: list[tuple[float, str]], blocks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """The marks of blocks with the stem and the head, as :mod:`.blocks` cuts a step."""
    found: list[tuple[float, str]] = []
    for (start, phase), (end, _) in pairwise([*phases, (float("inf"), "")]):
        within = [(when, name) for when, name in blocks if start <= when < end]
        if phase == "forward":  # what runs between two blocks belongs to the later one, but not between two calls
            following = [*(name for _, name in within[1:]), HEAD]
            within = [
                (when, later if name == HEAD and later != STEM else name)
                for (when, name), later in zip(within, following, strict=False)
            ]
        found += [(start, {"forward": STEM, "backward": HEAD}.get(phase, "")), *within]
    return found


def _at(marks: list[tuple[float, str]], when: float) -> str:
    """The name of the last mark before ``when``."""
    return marks[bisect_right(marks, when, key=lambda mark: mark[0]) - 1][1]
