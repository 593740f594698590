"""``fused-resnet compare``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .errors import BAD_INPUT, CommandError, shown
from .options import HtmlPath, JsonPath
from .output import check_pictures, check_writable, write_json, write_text

__all__ = ["compare"]


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json", help="Written by bench or profile with --json.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json", help="A later one.")],
    json: JsonPath = None,
    html: HtmlPath = None,
) -> None:
    """Show what changed from one result to a later one, and whether by more than their noise."""
    from ..bench.compare import COLUMNS, cells, changed_environment, short_names
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
    common, names = short_names(changes)
    for name, change in zip(names, changes, strict=True):
        texts = [text.replace(" (", "\n(") for text in cells(change)]
        table.add_row(name, *texts, style=styles.get(change.verdict))
    console = Console()
    if common:
        console.print(common, markup=False)
    console.print(table)
    for name, (old, new) in environment.items():
        console.print(f"{name}: {old} before, {new} after", markup=False)
    rows = [change._asdict() | {"ratio": change.ratio, "verdict": change.verdict} for change in changes]
    write_json(json, {"before": str(before), "after": str(after), "changes": rows, "environment": environment})
    if html:
        from ..bench.compare_page import changes_page

        write_text(html, changes_page(changes, environment, before.name, after.name))


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
