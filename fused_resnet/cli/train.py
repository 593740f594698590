"""``fused-resnet train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..train.settings import SCHEDULES, TrainSettings
from .errors import BAD_INPUT, end_interrupted, shown
from .options import MODEL_HELP, HtmlPath, JsonPath, Threads
from .output import check_pictures, check_writable, progress_bar, write_json, write_plot, write_text

if TYPE_CHECKING:
    from ..train import TrainResult

__all__ = ["train"]


def train(
    data: Annotated[str, typer.Option(help="digits: scikit-learn's, as 32x32 images.")] = TrainSettings.data,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = TrainSettings.model,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = TrainSettings.epochs,
    batch: Annotated[int, typer.Option(help="Images a step.")] = TrainSettings.batch,
    lr: Annotated[float, typer.Option(help="Learning rate after warm-up.")] = TrainSettings.lr,
    schedule: Annotated[str, typer.Option(help=f"Learning rate: {' or '.join(SCHEDULES)}.")] = TrainSettings.schedule,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = TrainSettings.momentum,
    nesterov: Annotated[bool, typer.Option(help="Nesterov's momentum.")] = TrainSettings.nesterov,
    weight_decay: Annotated[float, typer.Option(help="Weight decay, on all parameters.")] = TrainSettings.weight_decay,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and shifts.")] = TrainSettings.seed,
    threads: Threads = None,
    stock: Annotated[bool, typer.Option("--stock", help="Train the unfused twin: same weights, same batches.")] = False,
    json: JsonPath = None,
    plot: Annotated[Path | None, typer.Option(help="Write loss and accuracy curves as PNG.")] = None,
    html: HtmlPath = None,
) -> None:
    """Train a fused ResNet, or with --stock its unfused twin, and test it after each epoch.

    Ctrl-C keeps the results so far.
    """
    check_writable(json, plot, html)
    with shown(BAD_INPUT, ValueError, ImportError):
        check_pictures(plot, html)
        settings = TrainSettings(
            data=data,
            model=model,
            epochs=epochs,
            batch=batch,
            lr=lr,
            schedule=schedule,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            seed=seed,
            threads=threads,
            stock=stock,
        )
    result = _run(settings)
    Console().print(_epoch_table(result))
    write_json(json, result.to_dict())
    if plot:
        from ..train.plot import curves

        write_plot(plot, lambda: curves(result))
    if html:
        from ..train.page import training_page

        write_text(html, training_page(result))
    if result.interrupted:
        end_interrupted(json)


def _run(settings: TrainSettings) -> TrainResult:
    from ..train import train as run

    with shown(BAD_INPUT, ValueError, ImportError), progress_bar() as progress:

        def on_step(result: TrainResult, steps: int) -> None:
            tested = f", accuracy {result.epochs[-1].test_accuracy:.2%}" if result.epochs else ""
            progress(f"loss {result.losses[-1]:.4f}{tested}", len(result.losses), steps)

        return run(settings, on_step)


def _epoch_table(result: TrainResult) -> Table:
    form = "stock" if result.settings.stock else "fused"
    end = ", interrupted" if result.interrupted else ""
    title = f"{result.settings.model}, {form}, {result.seconds:.1f} s{end}"
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in ("epoch", "mean loss", "test accuracy", "seconds"):
        table.add_column(column, justify="right")
    for epoch in result.epochs:
        table.add_row(str(epoch.epoch), f"{epoch.loss:.4f}", f"{epoch.test_accuracy:.2%}", f"{epoch.seconds:.1f}")
    return table
