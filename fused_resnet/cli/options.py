"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["MODEL_HELP", "HtmlPath", "JsonPath", "Threads"]

MODEL_HELP = "NAME, torchvision:NAME, timm:NAME or fused_resnet:NAME."

JsonPath = Annotated[Path | None, typer.Option(help="Write everything as JSON.")]
HtmlPath = Annotated[Path | None, typer.Option(help="Write one self-contained page; needs plotly.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="all cores")]
