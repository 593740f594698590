"""``fused-resnet profile``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..bench.allocator import use_allocator
from ..bench.settings import ALLOCATORS, DEFAULT_BATCHES, OTHER_BATCH, available_cores, check_known
from .errors import BAD_INPUT, FAILED, CommandError, end_interrupted, shown
from .options import MODEL_HELP, HtmlPath, JsonPath, Threads
from .output import check_pictures, check_writable, progress_bar, write_json, write_plot, write_text

__all__ = ["profile"]


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    batch: Annotated[int | None, typer.Option(help="Images a step.", show_default="as bench")] = None,
    image_size: Annotated[int, typer.Option(help="Height and width of the images, in pixels.")] = 224,
    steps: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 5,
    threads: Threads = None,
    allocator: Annotated[str, typer.Option(help=f"glibc's malloc: {' or '.join(ALLOCATORS)}.")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = 0,
    json: JsonPath = None,
    trace: Annotated[Path | None, typer.Option(help="Write a trace of both for Chrome or Perfetto.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write bars of phases and blocks as PNG.")] = None,
    html: HtmlPath = None,
) -> None:
    """Show where a training step of MODEL spends time and memory, stock beside fused.

    By phase, stage, block and operator. The two take turns, step by step. Ctrl-C keeps the results so far.

    malloc is as your programs have it, glibc's "default", under which stock PyTorch's freed memory goes back to the
    system, which clears it again; "tuned" keeps it.
    """
    check_writable(json, trace, plot, html)
    for name, value in (("batch", batch), ("image-size", image_size), ("steps", steps), ("threads", threads)):
        if value is not None and value < 1:
            raise CommandError(f"{name}: expected at least 1, got {value}", BAD_INPUT)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler says on stderr when it starts and stops
    import torch

    from ..models.registry import create_model
    from ..profile import run

    with shown(BAD_INPUT, ValueError, ImportError):
        check_pictures(plot, html)
        check_known("allocator", [allocator], ALLOCATORS)
        torch.set_num_threads(threads or available_cores())
        torch.manual_seed(seed)
        built = create_model(model)
        use_allocator(allocator)
        images = torch.randn(batch or DEFAULT_BATCHES.get(model, OTHER_BATCH), 3, image_size, image_size)
    with shown(BAD_INPUT, ValueError), shown(FAILED, RuntimeError, TypeError), progress_bar() as progress:
        result = run(built, images, steps=steps, name=model, progress=progress)
    result.settings["allocator"] = allocator
    from ..profile.table import profile_table

    Console().print(profile_table(result))
    write_json(json, result.to_dict())
    write_json(trace, result.trace)
    if plot:
        from ..profile.plot import profile_bars

        write_plot(plot, lambda: profile_bars(result))
    if html:
        write_text(html, result.to_html())
    if result.interrupted:
        end_interrupted(json)
