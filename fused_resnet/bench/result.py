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

    def to_html(self) -> str:
        """One self-contained page. Raises ImportError without plotly."""
        from .page import results_page

        return results_page(self)

    def __str__(self) -> str:
        from rich.console import Console

        from .table import results_table

        console = Console(width=120)
        with console.capture() as captured:
            console.print(results_table(self.rows, self.environment.get("variants_left_out")))
        return captured.get()

    def _repr_html_(self) -> str:
        from ..report.page import framed

        return framed(self.to_html())
