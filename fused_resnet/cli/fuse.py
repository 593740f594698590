"""``fused-resnet fuse``."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import BAD_INPUT, shown
from .options import MODEL_HELP, JsonPath
from .output import check_writable, write_json

__all__ = ["fuse"]


def fuse(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    exclude: Annotated[list[str] | None, typer.Option(help="A module to leave as it is; may be repeated.")] = None,
    json: JsonPath = None,
) -> None:
    """Show which parts of MODEL are fused, which partly, which not, and why."""
    check_writable(json)
    import fused_resnet

    from ..models.registry import create_model

    with shown(BAD_INPUT, ValueError, ImportError):
        report = fused_resnet.fuse(create_model(model), exclude=tuple(exclude or ()))
    print(report)
    write_json(json, {"model": model} | report.to_dict())
