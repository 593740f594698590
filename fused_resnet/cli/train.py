"""``fused-resnet train``"""

from __future__ import annotations

from typing import Annotated

import typer

from .output import Json, Plot, check_writable, write_figure, write_json

__all__ = ["train"]


def train(
    data: Annotated[str, typer.Option(help="digits: scikit-learn's 1,797 images, as 32x32.")] = "digits",
    model: Annotated[str, typer.Option(help="As in bench.")] = "fused_resnet:resnet20",
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 12,
    batch: Annotated[int, typer.Option(help="Images a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 0.1,
    momentum: Annotated[float, typer.Option(help="Of SGD.")] = 0.9,
    nesterov: Annotated[bool, typer.Option(help="Nesterov's momentum.")] = True,
    weight_decay: Annotated[float, typer.Option(help="On all parameters.")] = 1e-4,
    schedule: Annotated[str, typer.Option(help="Of the learning rate: cosine or step.")] = "cosine",
    seed: Annotated[int, typer.Option(help="Of weights, order and shifts.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Default: torch's own choice.", show_default=False)] = None,
    stock: Annotated[bool, typer.Option("--stock", help="Train the unfused twin.")] = False,
    json: Json = None,
    plot: Plot = None,
) -> int:
    """Train a ResNet with SGD, weight decay and random shifts, fused or stock, and test it after each epoch."""
    check_writable(json, plot)
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from ..train import TrainResult, TrainSettings
    from ..train import train as run

    settings = TrainSettings(
        data=data,
        model=model,
        epochs=epochs,
        batch=batch,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        schedule=schedule,
        seed=seed,
        threads=threads,
        stock=stock,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{model}, {'stock' if stock else 'fused'}")

        def on_step(result: TrainResult, steps: int) -> None:
            accuracy = f", test accuracy {result.epochs[-1].test_accuracy:.2%}" if result.epochs else ""
            bar.update(task, description=f"loss {result.losses[-1]:.4f}{accuracy}", total=steps)
            bar.update(task, completed=len(result.losses))

        result = run(settings, on_step)
    write_json(json, result.to_dict())
    table = Table("epoch", "loss", "test accuracy", "seconds")
    for epoch in result.epochs:
        table.add_row(str(epoch.epoch), f"{epoch.loss:.4f}", f"{epoch.test_accuracy:.2%}", f"{epoch.seconds:.1f}")
    Console().print(table)
    if plot:
        from ..train.plot import learning_curve

        write_figure(plot, learning_curve(result))
    if result.interrupted:
        typer.echo("fused-resnet: interrupted; the result so far is kept", err=True)
        return 130
    return 0
