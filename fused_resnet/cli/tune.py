"""``fused-resnet tune``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..bench.settings import MODES
from .errors import BAD_INPUT, FAILED, end_interrupted, shown
from .options import MODEL_HELP, JsonPath
from .output import check_writable, progress_bar, write_json

__all__ = ["tune"]


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = "resnet50",
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    image_size: Annotated[int, typer.Option("--image-size", "--size", help="Height and width, in pixels.")] = 224,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    backend: Annotated[str, typer.Option(help="cuda or triton.")] = "cuda",
    mode: Annotated[str, typer.Option(help="Tune the calls of train or of infer.")] = "train",
    rounds: Annotated[int, typer.Option(help="Timed calls of each candidate.")] = 20,
    json: JsonPath = None,
) -> None:
    """Time our kernels and the vendor library's for each convolution of MODEL, and keep the fastest.

    The answers, for this device, type and shape, go to the tune file: $FUSED_RESNET_TUNE_FILE, else
    fused_resnet/tune.json in the user's cache. Every later run obeys it. Candidates that fail or that compute something
    else than PyTorch are left out. Ctrl-C keeps the answers so far.
    """
    check_writable(json)
    from ..bench import BenchError, BenchResult
    from ..bench.tune import TuneSettings, run_tune

    def write(result: BenchResult) -> None:
        write_json(json, result.to_dict())

    with shown(BAD_INPUT, ValueError, ImportError):
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; known: {', '.join(MODES)}")
        settings = TuneSettings(model, batch, image_size, dtype, backend, mode == "train", rounds)
        settings.check()
    with shown(FAILED, BenchError, RuntimeError, OSError), progress_bar() as progress:
        result = run_tune(settings, progress, on_rows=write)
    console = Console()
    console.print(_table(result.rows))
    console.print(f"kept in {result.environment['tune_file']}", markup=False, soft_wrap=True)
    if result.interrupted:
        end_interrupted(json)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("call", "choice", "fastest", "ms"):
        table.add_column(column, no_wrap=column != "ms")
    for row in rows:
        times = [f"{name} {ms:.3f}" for name, ms in row["ms"].items() if ms is not None]
        times += [f"{name}: {reason}" for name, reason in row["left_out"].items()]
        table.add_row(row["call"], row["slot"], row["chosen"], ", ".join(times))
    return table
