"""``fused-resnet info``"""

from __future__ import annotations

from .output import Json, check_writable, write_json

__all__ = ["info"]


def info(json: Json = None) -> None:
    """Show backends, instruction set and versions: what this installation has, and why not more."""
    check_writable(json)
    from rich.console import Console
    from rich.table import Table

    import fused_resnet

    facts = fused_resnet.info()
    table = Table(show_header=False, box=None)
    for name, fact in facts.items():
        text = "\n".join(f"{k}: {v}" for k, v in fact.items()) if isinstance(fact, dict) else str(fact)
        table.add_row(name.replace("_", " "), text or "none")
    Console().print(table)
    write_json(json, facts)
