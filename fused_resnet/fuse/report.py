"""What ``fuse`` did, module by module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["FuseEntry", "FuseReport"]


class FuseEntry(NamedTuple):
    """One module: its path (empty for the model itself), its stock class's name, and what was done or why not."""

    name: str
    class_name: str
    reason: str


@dataclass
class FuseReport:
    """The modules fused as a whole, in part, or left as they were; ``str()`` gives a table."""

    fused: list[FuseEntry] = field(default_factory=list)
    partial: list[FuseEntry] = field(default_factory=list)
    skipped: list[FuseEntry] = field(default_factory=list)

    def to_dict(self) -> dict[str, list[dict[str, str]]]:
        """The three lists, each entry as ``{"name", "class", "reason"}``: ready for JSON."""
        return {
            status: [{"name": e.name, "class": e.class_name, "reason": e.reason} for e in entries]
            for status, entries in self._lists()
        }

    def __str__(self) -> str:
        rows = [(e.name or "(model)", e.class_name, status, e.reason) for status, es in self._lists() for e in es]
        if not rows:
            return "nothing to fuse: no module holds a convolution and a norm"
        rows.insert(0, ("module", "class", "status", "what, or why not"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join([*lines, ", ".join(f"{len(entries)} {status}" for status, entries in self._lists())])

    def _lists(self) -> list[tuple[str, list[FuseEntry]]]:
        return [("fused", self.fused), ("partial", self.partial), ("skipped", self.skipped)]
