"""Files that commands write, and how they show progress."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .errors import BAD_INPUT, CommandError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_pictures", "check_writable", "progress_bar", "write_json", "write_plot", "write_text"]

ProgressUpdate = Callable[[str, int, int], None]  # what is done now, units done, all units


def check_writable(*paths: Path | None) -> None:
    """Raises CommandError for a path that a file cannot be written to, before the work that would fill it."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise CommandError(f"expected a file to write, got the directory {path}", BAD_INPUT)
        try:
            temporary = _temporary(path)
            temporary.touch()
            temporary.unlink()
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}", BAD_INPUT) from error


def write_text(path: Path | None, text: str) -> None:
    """Writes a file whole or not at all; nothing where no path was given."""
    if path is not None:
        _write(path, text.encode())


def write_json(path: Path | None, value: Any) -> None:
    """As :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_plot(path: Path | None, draw: Callable[[], Figure]) -> None:
    """Draws a figure and writes it as PNG; nothing where no path was given."""
    if path is not None:
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png")
        _write(path, buffer.getvalue())


def check_pictures(plot: Path | None, html: Path | None) -> None:
    """Raises ImportError where what draws them is missing: better known now than after the run."""
    if plot is not None:
        import matplotlib  # noqa: F401
    if html is not None:
        from ..report.page import require_plotly

        require_plotly()


@contextmanager
def progress_bar() -> Iterator[ProgressUpdate]:
    """A bar on stderr, where that is a terminal, told what is done now and how much of all is done."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda doing, done, total: bar.update(task, description=doing, completed=done, total=total)


def _write(path: Path, data: bytes) -> None:
    path = path.resolve()  # of a link, the file that it stands for
    temporary = _temporary(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A file beside ``path``, in the same file system, so that it can replace it at once."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")
