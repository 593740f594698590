"""A training run as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import asdict

from ..report import Page
from ..report.page import Cell
from .loop import TrainResult

__all__ = ["training_page"]


def training_page(result: TrainResult) -> str:
    """Curves, epochs, settings and environment. Raises ImportError without plotly."""
    settings = result.settings
    form = "stock" if settings.stock else "fused"
    ended = ", interrupted before its end" if result.interrupted else ""
    page = Page(f"{settings.model} on {settings.data}, {form}", f"{result.seconds:.1f} s{ended}")
    accuracies = [100 * epoch.test_accuracy for epoch in result.epochs]
    if accuracies:
        page.cards([("test accuracy", f"{accuracies[-1]:.2f} %", f"after epoch {result.epochs[-1].epoch}")])
    line = {"type": "scatter", "line": {"color": "--own"}}
    steps = {"x": list(range(1, len(result.losses) + 1)), "y": result.losses, "mode": "lines", "name": "loss"}
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"type": "log", "title": {"text": "cross entropy"}}}
    page.figure("Training loss", [line | steps], layout)
    epochs = {
        "x": [epoch.epoch for epoch in result.epochs],
        "y": accuracies,
        "mode": "lines+markers",
        "name": "accuracy",
    }
    page.figure(
        "Test accuracy", [line | epochs], {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": "%"}}}
    )
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
    page.facts("Environment", result.environment)
    return page.html()
