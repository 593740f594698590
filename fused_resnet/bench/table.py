"""The results as a table for the terminal, and the cells that the HTML page shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress, groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["COLUMNS", "FOOTNOTE", "caption", "cells", "group_title", "grouped", "is_best", "results_table"]

COLUMNS = ("variant", "img/s", "p20-p80", "step ms", "saved MB", "peak MB", "speedup")
WIDTHS = (13, 5, 11, 7, 11, 11, 7)  # so that the tables of all groups stand in line
FOOTNOTE = (
    "MB: 1e6 bytes, behind them their share of eager's.\n"
    "speedup: over the best stock variant of the same round, the median over all rounds."
)

Row = dict[str, Any]


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each model and allocator, in the order of the run."""
    return [list(group) for _, group in groupby(rows, lambda row: (row["model"], row["allocator"]))]


def group_title(group: Sequence[Row]) -> str:
    """What the rows of a group have in common, beside :func:`caption`."""
    title = "{model}, batch {batch}, {allocator} allocator".format(**group[0])
    if "rounds" not in group[0]:  # older results do not say
        return title
    return f"{title}, {group[0]['rounds']} round{'s' * (group[0]['rounds'] != 1)}"


def caption(rows: Sequence[Row]) -> str:
    """What all rows of a run have in common."""
    if not rows:
        return "no results"
    return "{mode}, {image_size}x{image_size}, {dtype}, {device}, {threads} threads".format(**rows[0])


def cells(row: Row, group: Sequence[Row]) -> list[str]:
    """A row's text by ``COLUMNS``; behind memory stands its share of eager's in the group."""
    eager = next((other for other in group if other["variant"] == "eager"), None)
    rate, speedup = row["img_per_s"], row["speedup_vs_best_stock"]
    peak = "peak_device_bytes" if "peak_device_bytes" in row else "peak_rss_bytes"
    return [
        row["variant"],
        f"{rate['median']:.1f}",
        f"{rate['p20']:.1f}-{rate['p80']:.1f}",
        f"{row['step_ms']['median']:.1f}",
        _megabytes(row, "saved_activation_bytes", eager),
        _megabytes(row, peak, eager),
        "" if speedup is None else f"{speedup:.3f}",
    ]


def is_best(row: Row, group: Sequence[Row]) -> bool:
    """Whether no other row of the group has a higher median throughput."""
    return bool(row["img_per_s"]["median"] >= max(other["img_per_s"]["median"] for other in group))


def results_table(rows: Sequence[Row], left_out: Mapping[str, str] | None = None) -> Group:
    """A table for each model and allocator, its best variant in bold; ``left_out`` says why a variant is not there."""
    tables = []
    for group in grouped(rows):
        table = Table(
            title=group_title(group), title_justify="left", box=SIMPLE_HEAD, show_edge=False, collapse_padding=True
        )
        texts = [cells(row, group) for row in group]
        filled = [any(column) for column in zip(*texts, strict=True)]  # nothing is saved in mode infer
        for column, width in compress(zip(COLUMNS, WIDTHS, strict=True), filled):
            table.add_column(column, justify="right" if table.columns else "left", min_width=width)
        for row, text in zip(group, texts, strict=True):
            table.add_row(*compress(text, filled), style="bold" if is_best(row, group) else None)
        tables.append(table)
    notes = (Text(f"left out: {reason}") for reason in (left_out or {}).values())  # Text: no markup in it
    return Group(caption(rows), *(Padding(table, (1, 0)) for table in tables), FOOTNOTE, *notes)


def _megabytes(row: Row, key: str, eager: Row | None) -> str:
    value = row[key]
    if value is None:
        return ""
    share = f" ({value / eager[key]:.2f})" if eager and eager[key] else ""
    return f"{value / 1e6:.0f}{share}"
