"""The results as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from .colors import COLORS
from .table import caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bar_chart"]

MAX_COLUMNS = 3
LABELS_A_PANEL = 4  # of the legend in one line

Row = dict[str, Any]


def bar_chart(rows: Sequence[Row]) -> Figure:
    """A panel for each model, a group of bars for each allocator: median images per second, with bars from p20 to p80.

    The number on a fused bar is its speedup over the best stock variant. Raises ValueError without rows.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    if not rows:
        raise ValueError("bar_chart: expected at least one row, got none")
    models = list(dict.fromkeys(row["model"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    columns = min(len(models), MAX_COLUMNS)
    lines = ceil(len(models) / columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 0.9 + 3.6 * lines), dpi=150, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, model in zip(panels, models, strict=False):
        _draw_model(panel, [row for row in rows if row["model"] == model], variants)
    for panel in panels[len(models) :]:
        panel.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    across = ceil(len(variants) / ceil(len(variants) / (LABELS_A_PANEL * columns)))
    figure.legend(handles, labels, loc="outside lower center", ncols=across, frameon=False)
    figure.suptitle(f"{caption(rows)}\nmedian, p20 to p80, speedup over the best stock variant", fontsize="medium")
    return figure


def _draw_model(panel: Axes, rows: Sequence[Row], variants: Sequence[str]) -> None:
    allocators = list(dict.fromkeys(row["allocator"] for row in rows))
    width = 0.84 / len(variants)
    for place, variant in enumerate(variants):
        color = COLORS[variant]
        drawn = [row for row in rows if row["variant"] == variant]
        rates = [row["img_per_s"] for row in drawn]
        medians = [rate["median"] for rate in rates]
        spread = [[r["median"] - r["p20"] for r in rates], [r["p80"] - r["median"] for r in rates]]
        offset = (place - (len(variants) - 1) / 2) * width
        positions = [allocators.index(row["allocator"]) + offset for row in drawn]
        error_style = {"linewidth": 1, "capsize": 2, "ecolor": "#1f2933"}
        panel.bar(positions, medians, 0.92 * width, yerr=spread, color=color, label=variant, error_kw=error_style)
        for row, position in zip(drawn, positions, strict=True):
            if row["speedup_vs_best_stock"] is not None:
                text = f"{row['speedup_vs_best_stock']:.2f}x"
                top = (position, row["img_per_s"]["p80"])
                panel.annotate(text, top, (0, 4), textcoords="offset points", ha="center", weight="bold", color=color)
    panel.set_title(f"{rows[0]['model']}, batch {rows[0]['batch']}", fontsize="medium")
    panel.set_xticks(range(len(allocators)), [f"{name} allocator" for name in allocators])
    panel.set_ylabel("images per second")
    panel.margins(y=0.12)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
    panel.tick_params(axis="x", length=0)
    panel.spines[["top", "right"]].set_visible(False)
