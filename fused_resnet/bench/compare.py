"""Two results side by side: what changed, and whether by more than their noise.

A benchmark's rows are matched by all that they measure, so are a layer benchmark's, ours and stock's; a profile's are
its phases and blocks. A change counts where the intervals from p20 to p80 do not meet, so it is the spread of the runs
themselves that says what noise is. Where a row has one number alone, a change of less than ``SINGLE_NOISE`` counts as
none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "SINGLE_NOISE", "Change", "cells", "changed_environment", "compare", "short_names"]

COLUMNS = ("what", "unit", "before", "after", "after / before", "verdict")
SINGLE_NOISE = 0.05  # of the number itself

Interval = tuple[float, float, float]  # p20, median, p80


class Change(NamedTuple):
    """One quantity in both results, or None where one lacks it; ``verdict`` says which way it went."""

    name: str
    unit: str
    before: Interval | None
    after: Interval | None
    higher_is_better: bool

    @property
    def ratio(self) -> float | None:
        """After ÷ before, of the medians."""
        return None if self.before is None or self.after is None else self.after[1] / self.before[1]

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``within noise``, ``only before`` or ``only after``."""
        if self.before is None or self.after is None:
            return "only after" if self.before is None else "only before"
        if self.after[0] <= self.before[2] and self.before[0] <= self.after[2]:
            return "within noise"
        return "better" if (self.after[1] > self.before[1]) == self.higher_is_better else "worse"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The changes from one result to the next, both as their JSON is.

    Raises ValueError for what is no result of ``bench`` or ``profile``, and where the two are not of one kind.
    """
    kinds = [_kind(result) for result in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"compare: expected two results of one kind, got {kinds[0]} and {kinds[1]}")
    rows, unit, higher_is_better = KINDS[kinds[0]]
    old, new = rows(before), rows(after)
    return [Change(n, unit, old.get(n), new.get(n), higher_is_better) for n in dict.fromkeys((*old, *new))]


def short_names(changes: Sequence[Change]) -> tuple[str, list[str]]:
    """What the names have in common, and each without it: a terminal and a phone are narrow."""
    parts = [change.name.split(", ") for change in changes]
    common = [part for part in parts[0] if len(parts) > 1 and all(part in other for other in parts)] if parts else []
    return ", ".join(common), [
        ", ".join(p for p in name if p not in common) or change.name
        for name, change in zip(parts, changes, strict=True)
    ]


def cells(change: Change) -> list[str]:
    """A change's text by ``COLUMNS``, but for its name."""
    intervals = ["" if i is None else f"{i[1]:.2f} ({i[0]:.2f}-{i[2]:.2f})" for i in (change.before, change.after)]
    ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
    return [change.unit, *intervals, ratio, change.verdict]


def changed_environment(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between the environments, apart from date, command and the checks of correctness."""
    old, new = before.get("environment", {}), after.get("environment", {})
    names = [name for name in {**old, **new} if name not in ("date", "command", "correctness", "interrupted")]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _kind(result: Mapping[str, Any]) -> str:
    rows = result.get("rows")
    for kind, field in (("bench", "img_per_s"), ("bench --layers", "gflop_per_s")):
        if isinstance(rows, list) and all(isinstance(row, dict) and field in row for row in rows):
            return kind
    if "blocks" in result and "steps" in result:
        return "profile"
    raise ValueError(f"compare: expected the JSON of bench or profile, got one with {', '.join(result) or 'nothing'}")


def _bench_rows(result: Mapping[str, Any]) -> dict[str, Interval]:
    rows = {}
    for row in result["rows"]:
        name = "{model}, {mode}, batch {batch}, {image_size} px, {dtype}, {device}, {threads} threads, ".format(**row)
        rate = row["img_per_s"]
        rows[name + "{allocator} allocator, {variant}".format(**row)] = (rate["p20"], rate["median"], rate["p80"])
    return rows


def _layer_rows(result: Mapping[str, Any]) -> dict[str, Interval]:
    """GFLOP/s of direct arithmetic, as the rows count it, at each of the times."""
    rows = {}
    for row in result["rows"]:
        name = "{model}, batch {batch}, {image_size} px, {dtype}, {threads} threads, {layer}, {pass}, ".format(**row)
        for form, prefix in (("ours", ""), ("stock", "stock_")):
            ms = row[f"{prefix}ms"]
            gflop = row[f"{prefix}gflop_per_s"] * ms["median"]  # times 1e-3, which the division takes away again
            rows[name + form] = (gflop / ms["p80"], gflop / ms["median"], gflop / ms["p20"])
    return rows


def _profile_rows(result: Mapping[str, Any]) -> dict[str, Interval]:
    rows = {}
    for variant, step in result["steps"].items():
        for phase, ms in step.items():
            rows[f"{result['model']}, {variant}: {phase}"] = _single(ms)
        for block in result["blocks"]:
            ms = block[variant]["forward_ms"] + block[variant]["backward_ms"]
            rows[f"{result['model']}, {variant}: {block['block']}"] = _single(ms)
    return rows


def _single(value: float) -> Interval:
    half = SINGLE_NOISE / 2
    return value * (1 - half), value, value * (1 + half)


KINDS: dict[str, tuple[Callable[[Mapping[str, Any]], dict[str, Interval]], str, bool]] = {
    "bench": (_bench_rows, "img/s", True),
    "bench --layers": (_layer_rows, "GFLOP/s", True),
    "profile": (_profile_rows, "ms", False),
}
