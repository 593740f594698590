"""Two results side by side: what changed, and whether by more than their noise.

A benchmark's rows are matched by all that they measure; a profile's are its phases and blocks. A change counts where
the intervals from p20 to p80 do not meet, so it is the spread of the runs themselves that says what noise is. Where a
row has one number alone, a change of less than ``SINGLE_NOISE`` counts as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["SINGLE_NOISE", "Change", "changed_environment", "compare"]

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
    rows, unit = (_bench_rows, "img/s") if kinds[0] == "bench" else (_profile_rows, "ms")
    old, new = rows(before), rows(after)
    return [Change(n, unit, old.get(n), new.get(n), kinds[0] == "bench") for n in dict.fromkeys((*old, *new))]


def changed_environment(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between the environments, apart from date, command and the checks of correctness."""
    old, new = before.get("environment", {}), after.get("environment", {})
    names = [name for name in {**old, **new} if name not in ("date", "command", "correctness", "interrupted")]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _kind(result: Mapping[str, Any]) -> str:
    rows = result.get("rows")
    if isinstance(rows, list) and all(isinstance(row, dict) and "img_per_s" in row for row in rows):
        return "bench"
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
