"""``fused-resnet compare``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .errors import BAD_INPUT, CommandError, shown
from .options import HtmlPath, JsonPath
from .output import check_pictures, check_writable, write_json, write_text

if TYPE_CHECKING:
    from ..bench.compare import Change

__all__ = ["compare"]

COLUMNS = ("what", "unit", "before", "after", "after / before", "verdict")


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json", help="Written by bench or profile with --json.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json", help="A later one.")],
    json: JsonPath = None,
    html: HtmlPath = None,
) -> None:
    """Show what changed from one result to a later one, and whether by more than their noise."""
    from ..bench.compare import changed_environment
    from ..bench.compare import compare as changes_between

    check_writable(json, html)
    with shown(BAD_INPUT, ValueError, ImportError):
        check_pictures(None, html)
        results = [_read(path) for path in (before, after)]
        changes = changes_between(*results)
        environment = changed_environment(*results)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index in (0, 5) else "right", no_wrap=index in (2, 3))
    styles = {"better": "bold green", "worse": "bold red"}
    common, names = _names(changes)
    for name, change in zip(names, changes, strict=True):
        cells = [cell.replace(" (", "\n(") for cell in _cells(change)[1:]]
        table.add_row(name, *cells, style=styles.get(change.verdict))
    console = Console()
    if common:
        console.print(common, markup=False)
    console.print(table)
    for name, (old, new) in environment.items():
        console.print(f"{name}: {old} before, {new} after", markup=False)
    rows = [change._asdict() | {"ratio": change.ratio, "verdict": change.verdict} for change in changes]
    write_json(json, {"before": str(before), "after": str(after), "changes": rows, "environment": environment})
    if html:
        write_text(html, _page(before, after, changes, environment))


def _page(before: Path, after: Path, changes: list[Change], environment: dict[str, tuple[Any, Any]]) -> str:
    from ..report import Page
    from ..report.page import Cell

    page = Page("What changed", f"{before.name} before, {after.name} after")
    page.cards([(verdict, str(sum(c.verdict == verdict for c in changes)), "") for verdict in ("better", "worse")])
    known = [change for change in changes if change.ratio is not None]
    bars = {"type": "bar", "orientation": "h", "y": [c.name for c in known], "x": [c.ratio for c in known]}
    line = {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1}
    height = 120 + 24 * len(known)
    page.figure("After ÷ before", [{**bars, "marker": {"color": "--own"}}], {"height": height, "shapes": [line]})
    rows: list[list[str | Cell]] = []
    for change in changes:
        name, unit, *numbers, verdict = _cells(change)
        values = [None if i is None else i[1] for i in (change.before, change.after)]
        cells = [Cell(text, value) for text, value in zip(numbers, (*values, change.ratio), strict=True)]
        rows.append([name, unit, *cells, verdict])
    page.table("In numbers", COLUMNS, rows)
    page.facts("What differs in the environment", {name: f"{old} → {new}" for name, (old, new) in environment.items()})
    return page.html()


def _names(changes: list[Change]) -> tuple[str, list[str]]:
    """What the names have in common, and each without it: a terminal is narrow."""
    parts = [change.name.split(", ") for change in changes]
    common = [part for part in parts[0] if len(parts) > 1 and all(part in other for other in parts)] if parts else []
    return ", ".join(common), [
        ", ".join(p for p in name if p not in common) or change.name
        for name, change in zip(parts, changes, strict=True)
    ]


def _cells(change: Change) -> list[str]:
    intervals = ["" if i is None else f"{i[1]:.2f} ({i[0]:.2f}-{i[2]:.2f})" for i in (change.before, change.after)]
    ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
    return [change.name, change.unit, *intervals, ratio, change.verdict]


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json_module.loads(path.read_text())
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", BAD_INPUT) from error
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got something else: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{path}: expected the JSON of bench or profile, got a {type(result).__name__}")
    return result
