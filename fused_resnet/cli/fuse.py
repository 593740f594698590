"""``fused-resnet fuse``"""

from __future__ import annotations

from typing import Annotated

import typer

from .output import Json, check_writable, write_json

__all__ = ["fuse"]


def fuse(
    model: Annotated[str, typer.Argument(help="torchvision's NAME, fused_resnet:NAME or timm:NAME.")],
    exclude: Annotated[
        list[str] | None, typer.Option(help="Path of a module to leave out; may be given again.", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """Show what would be fused in a model, what in part, what not, and why."""
    check_writable(json)
    import fused_resnet
    from fused_resnet.models import create_model

    network = create_model(model)
    fused_resnet.unfuse(network)
    report = fused_resnet.fuse(network, exclude=exclude or ())
    typer.echo(str(report))
    write_json(json, report.to_dict())
