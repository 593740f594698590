"""A training run as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from typing import Any

from ..report import Page
from ..report.page import Cell
from .loop import TrainResult

__all__ = ["training_page"]

TICKS = [float(f"{digit}e{exponent}") for exponent in range(-9, 3) for digit in (1, 2, 5)]  # of a logarithmic axis
MOST_TICKS = 8


def training_page(result: TrainResult) -> str:
    """Curves, epochs, settings and environment. Raises ImportError without plotly."""
    settings = result.settings
    form = "stock" if settings.stock else "fused"
    ended = ", interrupted before its end" if result.interrupted else ""
    page = Page(f"{settings.model} on {settings.data}, {form}", f"{result.seconds:.1f} s{ended}")
    if result.epochs:
        last = result.epochs[-1]
        page.cards([("test accuracy", f"{last.test_accuracy:.2%}", f"after epoch {last.epoch}")])
    curve = {"type": "scatter", "line": {"color": "--stock" if settings.stock else "--own"}}
    steps = {"x": list(range(1, len(result.losses) + 1)), "y": result.losses, "mode": "lines", "name": "loss"}
    layout = _layout("step", "cross entropy", type="log", tickvals=TICKS, exponentformat="power")
    page.figure("Training loss", [curve | steps], layout)
    epochs = {
        "x": [epoch.epoch for epoch in result.epochs],
        "y": [100 * epoch.test_accuracy for epoch in result.epochs],
        "mode": "lines+markers",
        "name": "accuracy",
    }
    layout = _layout("epoch", "%")
    layout["xaxis"]["dtick"] = ceil(len(result.epochs) / MOST_TICKS) or 1  # no halves of epochs
    page.figure("Test accuracy", [curve | epochs], layout)
    rows = [
        (
            Cell(str(epoch.epoch), epoch.epoch),
            Cell(f"{epoch.loss:.4f}", epoch.loss),
            Cell(f"{epoch.test_accuracy:.2%}", epoch.test_accuracy),
            Cell(f"{epoch.seconds:.1f}", epoch.seconds),
        )
        for epoch in result.epochs
    ]
    page.table("Epochs", ("epoch", "mean loss", "test accuracy", "seconds"), rows)
    page.facts("Settings", asdict(settings))
    environment = dict(result.environment)
    command = environment.pop("command", "")
    page.facts("Environment", environment)
    if command:
        page.command(command)
    return page.html()


def _layout(x: str, y: str, **y_axis: Any) -> dict[str, Any]:
    return {"height": 340, "xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, **y_axis}}
