"""What changed from one result to a later one, as one self-contained HTML page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..report import Page
from ..report.page import Cell
from .compare import COLUMNS, Change, cells, short_names

__all__ = ["changes_page"]

LABEL_WIDTH = 24  # characters a line: half of a phone
LINE_PX, GAP_PX = 14, 10
COLORS = {"better": "--own", "worse": "--own", "within noise": "--stock"}


def changes_page(changes: Sequence[Change], environment: Mapping[str, tuple[Any, Any]], before: str, after: str) -> str:
    """The page; ``before`` and ``after`` name the two results. Raises ImportError without plotly."""
    common, names = short_names(changes)
    page = Page("What changed", ": ".join(filter(None, (common, f"{before} before, {after} after"))))
    page.cards([(verdict, str(sum(c.verdict == verdict for c in changes)), "") for verdict in ("better", "worse")])
    page.figure("After ÷ before", *_bars(changes, names), "Grey: within noise.")
    rows = [_row(change, name) for change, name in zip(changes, names, strict=True)]
    page.table("In numbers", COLUMNS, rows, "The median, and from p20 to p80.")
    if environment:
        page.facts("What differs in the environment", {n: f"{old} → {new}" for n, (old, new) in environment.items()})
    return page.html()


def _bars(changes: Sequence[Change], names: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A bar for each change that has both sides; the dotted line is none at all."""
    known = [(change, name) for change, name in zip(changes, names, strict=True) if change.ratio is not None]
    labels = [textwrap.wrap(name, LABEL_WIDTH) for _, name in known]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": ["<br>".join(lines) for lines in labels],
        "x": [change.ratio for change, _ in known],
        "customdata": [change.verdict for change, _ in known],
        "marker": {"color": [COLORS[change.verdict] for change, _ in known]},
        "hovertemplate": "%{y}: %{x:.3f}, %{customdata}<extra></extra>",
    }
    line = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    height = 80 + len(labels) * (GAP_PX + LINE_PX * max(map(len, labels), default=0))
    axis = {"autorange": "reversed", "showgrid": False}
    return [bars], {"height": height, "shapes": [line], "yaxis": axis}


def _row(change: Change, name: str) -> list[str | Cell]:
    unit, *numbers, verdict = cells(change)
    medians = [None if interval is None else interval[1] for interval in (change.before, change.after)]
    values = [Cell(text, value) for text, value in zip(numbers, (*medians, change.ratio), strict=True)]
    return [name, unit, *values, verdict]
