"""Files that a command writes: checked before the work starts, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Html", "Json", "Plot", "check_writable", "write_figure", "write_json", "write_text"]

Json = Annotated[Path | None, typer.Option("--json", metavar="PATH", help="Write the results as JSON.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="PATH", help="Write a picture as PNG.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="PATH", help="Write one self-contained page.")]


def check_writable(*paths: Path | None) -> None:
    """Raises ValueError for a path that no file can be written to."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"output path: expected a file, got the directory {path}")
        if not path.resolve().parent.is_dir():
            raise ValueError(f"output path: expected a path in an existing directory, got {path}")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            raise ValueError(f"output path: expected a writable path, got {path}")


def write_text(path: Path | None, text: str) -> None:
    """Writes ``text`` to ``path``, if there is one."""
    if path is not None:
        _write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | None, content: Any) -> None:
    """Writes ``content`` as JSON to ``path``, if there is one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_figure(path: Path | None, figure: Any) -> None:
    """Writes a matplotlib figure as PNG to ``path``, if there is one."""
    if path is not None:
        _write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Whoever reads ``path`` sees the old file or the new one, never a part."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        temporary.chmod(mode & 0o777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
