"""The results as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

from ..report import Page
from ..report.page import Cell
from .colors import COLORS
from .result import BenchResult
from .table import COLUMNS, FOOTNOTE, caption, cells, group_title, grouped, is_best
from .variants import VARIANTS

__all__ = ["results_page"]

BAR_PX = 18

Row = dict[str, Any]


def results_page(result: BenchResult) -> str:
    """The page: bars, tables and environment. It loads nothing from anywhere. Raises ImportError without plotly."""
    ended = "; interrupted before its end" if result.interrupted else ""
    page = Page("fused_resnet benchmark", f"{caption(result.rows)}{ended}")
    groups = grouped(result.rows)
    page.cards([_card(row, group) for group in groups for row in group if row["speedup_vs_best_stock"] is not None])
    if result.rows:
        page.figure("Images per second", *_bars(groups), "Median, and from p20 to p80.")
    for index, group in enumerate(groups):
        best = [place for place, row in enumerate(group) if is_best(row, group)]
        page.table(group_title(group), *_columns(group), "" if index else FOOTNOTE, best)
    environment = dict(result.environment)
    command = environment.pop("command", "")
    page.facts("Environment", environment)
    if command:
        page.command(command)
    return page.html()


def _card(row: Row, group: Sequence[Row]) -> tuple[str, str, str]:
    return group_title(group), f"{row['speedup_vs_best_stock']:.2f}", f"{row['variant']} over the best stock variant"


def _bars(groups: Sequence[Sequence[Row]]) -> tuple[list[Row], Row]:
    """Lying bars, so that names have room on a phone: the variants of each model and allocator, fused on top."""
    variants = list(dict.fromkeys(row["variant"] for group in groups for row in group))
    data = []
    for variant in variants:
        own = [row for group in groups for row in group if row["variant"] == variant]
        rates = [row["img_per_s"] for row in own]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": variant,
                "y": ["{model}<br>batch {batch}, {allocator} allocator".format(**row) for row in own],
                "x": [rate["median"] for rate in rates],
                "error_x": {
                    "type": "data",
                    "array": [rate["p80"] - rate["median"] for rate in rates],
                    "arrayminus": [rate["median"] - rate["p20"] for rate in rates],
                    "color": "--text",
                    "thickness": 1,
                },
                "marker": {"color": COLORS[variant] if VARIANTS[variant].is_stock else "--own"},
                "hovertemplate": "%{y}: %{x:.1f} images per second",
            }
        )
    height = 120 + len(groups) * (BAR_PX * len(variants) + 16)
    return data, {"barmode": "group", "height": height, "yaxis": {"autorange": "reversed", "showgrid": False}}


def _columns(group: Sequence[Row]) -> tuple[list[str], list[list[str | Cell]]]:
    """The columns that have something in them, and their cells by row."""
    filled = [any(texts) for texts in zip(*(cells(row, group) for row in group), strict=True)]
    return list(compress(COLUMNS, filled)), [list(compress(_cells(row, group), filled)) for row in group]


def _cells(row: Row, group: Sequence[Row]) -> list[str | Cell]:
    rate, peak = row["img_per_s"], row.get("peak_rss_bytes", row.get("peak_device_bytes"))
    values = (rate["median"], rate["p20"], row["step_ms"]["median"], row["saved_activation_bytes"], peak)
    texts = cells(row, group)
    numbers = (*values, row["speedup_vs_best_stock"])
    return [texts[0], *(Cell(text, value) for text, value in zip(texts[1:], numbers, strict=True))]
