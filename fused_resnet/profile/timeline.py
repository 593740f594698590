"""The operators of one step in time, each with its kind, phase and block, from a trace of torch.profiler.

The step leaves marks in its own trace, :func:`mark`; what begins behind a mark belongs to it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch.profiler import record_function

from .blocks import HEAD, STEM

__all__ = ["LEAST_MS", "kind_of", "mark", "timeline"]

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
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))
    phases, blocks = _marks(events, "phase"), _marks(events, "block")
    if not phases:
        return []
    blocks = _with_phases(phases, blocks)
    rows: list[Row] = []
    busy_until = phases[0][0]
    for event in events:
        if not _is_operator(event["name"]) or event["ts"] < busy_until:
            continue
        busy_until = event["ts"] + event["dur"]
        if event["dur"] >= 1e3 * LEAST_MS:
            rows.append(
                {
                    "op": event["name"],
                    "kind": kind_of(event["name"]),
                    "phase": _at(phases, event["ts"]),
                    "block": _at(blocks, event["ts"]),
                    "start_ms": (event["ts"] - phases[0][0]) / 1e3,
                    "ms": event["dur"] / 1e3,
                }
            )
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
    starts = {name: when for when, name in phases}
    end = starts.get("backward", float("inf"))
    forward = [(when, name) for when, name in blocks if when < end]
    # What runs between two blocks belongs to the later one.
    for place in range(len(forward) - 2, -1, -1):
        if forward[place][1] == HEAD:
            forward[place] = (forward[place][0], forward[place + 1][1])
    later = [(starts["backward"], HEAD)] if "backward" in starts else []
    later += [(when, name) for when, name in blocks if when >= end]
    later += [(starts["optimizer"], "")] if "optimizer" in starts else []
    return sorted([(phases[0][0], STEM), *forward, *later])


def _at(marks: list[tuple[float, str]], when: float) -> str:
    """The name of the last mark before ``when``."""
    return marks[bisect_right(marks, when, key=lambda mark: mark[0]) - 1][1]
