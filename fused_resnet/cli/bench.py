"""``fused-resnet bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..bench import BenchError, BenchResult, Settings, run_settings
from ..bench.settings import ALLOCATORS, DEFAULT_BATCHES, DEVICES, DTYPES, MODES, OTHER_BATCH
from ..bench.variants import VARIANTS
from .errors import BAD_INPUT, FAILED, end_interrupted, shown
from .options import MODEL_HELP, HtmlPath, JsonPath, Threads
from .output import check_pictures, check_writable, progress_bar, write_json, write_plot, write_text

__all__ = ["bench"]

VARIANT_HELP = "; ".join(f"{variant.name}: {variant.description}" for variant in VARIANTS.values())
VARIANTS_DEFAULT = "; ".join(
    f"to {mode}: {', '.join(variant.name for variant in VARIANTS.values() if mode in variant.default_modes)}"
    for mode in MODES
)
BATCH_DEFAULT = ", ".join(
    [*(f"{batch} for {model}" for model, batch in DEFAULT_BATCHES.items()), f"else {OTHER_BATCH}"]
)


def bench(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = None,
    mode: Annotated[str, typer.Option(help=f"What a step is: {' or '.join(MODES)}.")] = Settings.mode,
    batch: Annotated[
        int | None, typer.Option(help="Images a step, for all models.", show_default=BATCH_DEFAULT)
    ] = None,
    image_size: Annotated[int, typer.Option(help="Height and width of the images, in pixels.")] = Settings.image_size,
    threads: Threads = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}; half types train under autocast.")] = "fp32",
    device: Annotated[str, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = Settings.device,
    variants: Annotated[
        str | None, typer.Option(help=f"What to compare. {VARIANT_HELP}.", show_default=VARIANTS_DEFAULT)
    ] = None,
    allocator: Annotated[str, typer.Option(help=f"glibc's malloc: {', '.join(ALLOCATORS)} or both.")] = "both",
    rounds: Annotated[int, typer.Option(help="Timed steps of each variant.")] = Settings.rounds,
    minutes: Annotated[
        float | None,
        typer.Option(help="Leave out rounds that would end later, but not the first.", show_default="no limit"),
    ] = Settings.minutes,
    seed: Annotated[int, typer.Option(help="Seed of weights and images.")] = Settings.seed,
    layers: Annotated[
        bool, typer.Option("--layers", help="Time each distinct convolution instead: forward, dgrad and wgrad.")
    ] = False,
    json: JsonPath = None,
    plot: Annotated[Path | None, typer.Option(help="Write a bar chart as PNG.")] = None,
    html: HtmlPath = None,
) -> None:
    """Compare fused ResNets with stock PyTorch: images per second, memory, speedup.

    Every variant runs in its own process with the same weights and images, and is checked against stock PyTorch before
    anything is timed. The variants then take turns, step by step, so that a machine that slows down slows all of them.
    By default glibc's malloc gives large blocks back to the system and pays for them again in each step; "tuned" makes
    it keep them. Ctrl-C keeps the results so far.

    With --layers, ours and stock PyTorch's convolutions take turns one layer after the other, in fp32 on the CPU.
    """
    check_writable(json, plot, html)
    fields: dict[str, Any] = {
        "models": models or Settings.models,
        "batch": batch,
        "image_size": image_size,
        "threads": threads,
        "dtype": dtype,
        "device": device,
        "rounds": rounds,
        "seed": seed,
    }
    if layers:
        from .bench_layers import bench_layers

        others = {
            "mode": mode != Settings.mode,
            "variants": variants,
            "allocator": allocator != "both",
            "minutes": minutes,
        }
        return bench_layers(json, others | {"plot": plot, "html": html}, fields)
    with shown(BAD_INPUT, ValueError, ImportError):
        check_pictures(plot, html)
        settings = Settings(
            **fields,
            mode=mode,
            minutes=minutes,
            variants=None if variants is None else variants.split(","),
            allocators=list(ALLOCATORS) if allocator == "both" else [allocator],
        )

    _run(settings, json, plot, html)


def _run(settings: Settings, json: Path | None, plot: Path | None, html: Path | None) -> None:
    def write(result: BenchResult) -> None:
        write_json(json, result.to_dict())

    with shown(FAILED, BenchError), progress_bar() as progress:
        result = run_settings(settings, progress, on_rows=write)
    if result.rows:
        _show(result, plot, html)
    if result.interrupted:
        end_interrupted(json)


def _show(result: BenchResult, plot: Path | None, html: Path | None) -> None:
    from ..bench.plot import bar_chart
    from ..bench.table import results_table

    Console().print(results_table(result.rows, result.environment.get("variants_left_out")))
    write_plot(plot, lambda: bar_chart(result.rows))
    if html:
        write_text(html, result.to_html())
