"""A training run as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .loop import TrainResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve"]


def learning_curve(result: TrainResult) -> Figure:
    """Loss of each step, and test accuracy after each epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.semilogy(range(1, len(result.losses) + 1), result.losses, color="#6b7c93", linewidth=0.8)
    loss.set(title="training loss", xlabel="step")
    epochs = [e.epoch for e in result.epochs]
    accuracy.plot(epochs, [100 * e.test_accuracy for e in result.epochs], color="#d1495b", marker="o", markersize=3)
    accuracy.set(title="test accuracy, %", xlabel="epoch")
    for panel in (loss, accuracy):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    settings = result.settings
    figure.suptitle(f"{settings.model} on {settings.data}, {'stock' if settings.stock else 'fused'}", fontsize="medium")
    return figure
