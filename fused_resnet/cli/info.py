"""``fused-resnet info``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .errors import BAD_INPUT, shown
from .options import JsonPath
from .output import check_writable, write_json

__all__ = ["info"]


def info(json: JsonPath = None) -> None:
    """Show versions, the backends and why one is absent, instruction set and threads."""
    check_writable(json)
    import fused_resnet

    with shown(BAD_INPUT, ValueError):
        facts = fused_resnet.info()
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        lines = [f"{key}: {item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
        table.add_row(name, "\n".join(lines) or "none")
    Console().print(table, markup=False)
    write_json(json, facts)
