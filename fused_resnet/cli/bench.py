"""``fused-resnet bench``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import Html, Json, Plot, check_writable, write_figure, write_json, write_text

__all__ = ["bench"]


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="torchvision's NAME, fused_resnet:NAME or timm:NAME; default: resnet18 (batch 32) and resnet50 (16).",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[str, typer.Option(help="train (forward, backward, SGD) or infer.")] = "train",
    batch: Annotated[int | None, typer.Option(help="Images a step; default by model.", show_default=False)] = None,
    image_size: Annotated[int, typer.Option(help="Height and width, in pixels.")] = 224,
    threads: Annotated[int | None, typer.Option(help="Default: the available cores.", show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help="fp32, fp64, bf16 or fp16.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    variants: Annotated[
        str, typer.Option(help="Which to compare, with commas between.")
    ] = "fused,eager,channels_last,compile",
    allocator: Annotated[str, typer.Option(help="glibc's settings: default, tuned or both.")] = "both",
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = 5,
    seed: Annotated[int, typer.Option(help="Of weights and images.")] = 0,
    json: Json = None,
    plot: Plot = None,
    html: Html = None,
) -> int:
    """Measure images per second and memory, fused against stock PyTorch.

    Each variant runs in a process of its own, under the same allocator. They take turns round by round; the speedup is
    the median over rounds of fused against the best stock variant of the same round. Results are compared first.
    """
    check_writable(json, plot, html)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..bench import BenchResult, Settings, run_settings
    from ..bench.page import results_page
    from ..bench.plot import bar_chart
    from ..bench.settings import ALLOCATORS, DEFAULT_BATCHES
    from ..bench.table import results_table

    settings = Settings(
        models=models or tuple(DEFAULT_BATCHES),
        mode=mode,
        batch=batch,
        image_size=image_size,
        threads=threads,
        dtype=dtype,
        device=device,
        variants=tuple(variants.split(",")),
        allocators=tuple(ALLOCATORS) if allocator == "both" else (allocator,),
        rounds=rounds,
        seed=seed,
    )

    def save(result: BenchResult) -> None:
        write_json(json, result.to_dict())

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")

        def progress(doing: str, done: int, total: int) -> None:
            bar.update(task, description=doing, completed=done, total=total)

        result = run_settings(settings, progress, save)
    save(result)
    if result.rows:
        Console().print(results_table(result.rows))
        if plot:
            write_figure(plot, bar_chart(result.rows))
        write_text(html, results_page(result) if html else "")
    return _interrupted(result.interrupted, json)


def _interrupted(interrupted: bool, json: Path | None) -> int:
    if not interrupted:
        return 0
    kept = f"; what was measured is in {json}" if json else ""
    typer.echo(f"fused-resnet: interrupted{kept}", err=True)
    return 130
