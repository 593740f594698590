"""The rows of a layer benchmark as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table

__all__ = ["layer_table"]

COLUMNS = ("layer", "pass", "ms", "stock", "GF/s", "stock", "%peak", "stock", "ratio", "algorithm")
FOOTNOTE = (
    "3x3/2 64>128 56x56: filter, stride, channels, input; below, how often it occurs.\n"
    "stock: PyTorch in its better layout. GF/s: 1e9 operations of direct arithmetic;\n"
    "Winograd needs fewer and tile registers do more, so their share of the multiply-add peak may be above 100.\n"
    "ratio: stock's time over ours in the same round, the median over all rounds."
)

Row = dict[str, Any]


def layer_table(rows: Sequence[Row]) -> Group:
    """A table for each model with three rows a layer, those that are slower than stock in red."""
    tables = []
    for _, model_rows in groupby(rows, lambda row: row["model"]):
        group = list(model_rows)
        title = "{model}, batch {batch}, {image_size}x{image_size}, {dtype}, {threads} threads".format(**group[0])
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
        for column in COLUMNS:
            is_text = column in ("layer", "pass", "algorithm")
            table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "layer")
        for _, layer_rows in groupby(group, lambda row: row["layer"]):
            for place, row in enumerate(layer_rows):
                table.add_row(*_cells(row, place), style=_style(row))
            table.add_section()
        tables.append(Padding(table, (0, 0, 1, 0)))
    return Group(*tables, FOOTNOTE)


def _cells(row: Row, place: int) -> list[str]:
    """A row's text by ``COLUMNS``; ``place`` is its place among the passes of its layer."""
    return [
        (row["layer"], f"{row['count']} times" if row["count"] > 1 else "once", "")[place],
        "fwd" if row["pass"] == "forward" else row["pass"],
        _three_digits(row["ms"]["median"]),
        _three_digits(row["stock_ms"]["median"]),
        f"{row['gflop_per_s']:.0f}",
        f"{row['stock_gflop_per_s']:.0f}",
        f"{row['percent_of_peak']:.0f}",
        f"{row['stock_percent_of_peak']:.0f}",
        f"{row['speedup_vs_stock']:.2f}",
        row["algorithm"],
    ]


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _style(row: Row) -> str | None:
    return "red" if row["speedup_vs_stock"] < 1 else None
