"""The results as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report import Page
from ..report.page import Cell
from .result import BenchResult
from .table import COLUMNS, FOOTNOTE, caption, cells, group_title, grouped, is_best
from .variants import VARIANTS

__all__ = ["results_page"]

Row = dict[str, Any]


def results_page(result: BenchResult) -> str:
    """The page: bars, tables and environment. It loads nothing from anywhere. Raises ImportError without plotly."""
    ended = "; interrupted before its end" if result.interrupted else ""
    page = Page("fused_resnet benchmark", f"{caption(result.rows)}{ended}")
    groups = grouped(result.rows)
    page.cards([_card(row, group) for group in groups for row in group if row["speedup_vs_best_stock"] is not None])
    if result.rows:
        page.figure(
            "Images per second", _bars(groups), {"barmode": "group", "height": 420}, "Median, bars from p20 to p80."
        )
    for group in groups:
        best = [index for index, row in enumerate(group) if is_best(row, group)]
        page.table(group_title(group), COLUMNS, [_row(row, group) for row in group], FOOTNOTE, best)
    environment = dict(result.environment)
    command = environment.pop("command", "")
    page.facts("Environment", environment)
    if command:
        page.command(command)
    return page.html()


def _card(row: Row, group: Sequence[Row]) -> tuple[str, str, str]:
    return group_title(group), f"{row['speedup_vs_best_stock']:.2f}", f"{row['variant']} over the best stock variant"


def _bars(groups: Sequence[Sequence[Row]]) -> list[Row]:
    rows = [row for group in groups for row in group]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    stock = [variant for variant in variants if VARIANTS[variant].is_stock]
    data = []
    for variant in variants:
        own = [(row, group) for group in groups for row in group if row["variant"] == variant]
        rates = [row["img_per_s"] for row, _ in own]
        opacity = 1 - 0.5 * stock.index(variant) / len(stock) if variant in stock else 1.0
        data.append(
            {
                "type": "bar",
                "name": variant,
                "x": [group_title(group).replace(", ", "<br>") for _, group in own],
                "y": [rate["median"] for rate in rates],
                "error_y": {
                    "type": "data",
                    "array": [rate["p80"] - rate["median"] for rate in rates],
                    "arrayminus": [rate["median"] - rate["p20"] for rate in rates],
                },
                "marker": {"color": "--stock" if variant in stock else "--own", "opacity": opacity},
                "hovertemplate": "%{x}: %{y:.1f} images per second",
            }
        )
    return data


def _row(row: Row, group: Sequence[Row]) -> list[str | Cell]:
    rate, peak = row["img_per_s"], row.get("peak_rss_bytes", row.get("peak_device_bytes"))
    values = (rate["median"], rate["p20"], row["step_ms"]["median"], row["saved_activation_bytes"], peak)
    texts = cells(row, group)
    numbers = (*values, row["speedup_vs_best_stock"])
    return [texts[0], *(Cell(text, value) for text, value in zip(texts[1:], numbers, strict=True))]
