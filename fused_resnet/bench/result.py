"""What a benchmark gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BenchResult"]


@dataclass
class BenchResult:
    """A row for each model, allocator and variant (fields as in :func:`.summary.row`), and their environment.

    ``interrupted`` tells that Ctrl-C ended the run, so that rows are missing or rest on fewer rounds.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """``{"environment": {...}, "rows": [...]}``, ready for ``json.dump``."""
        return {"environment": self.environment | {"interrupted": self.interrupted}, "rows": self.rows}
