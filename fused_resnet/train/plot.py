"""A training run as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .loop import TrainResult

__all__ = ["curves"]

COLOR = "#d1495b"


def curves(result: TrainResult) -> Figure:
    """Loss of each step, and test accuracy after each epoch."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    losses.plot(range(1, len(result.losses) + 1), result.losses, color=COLOR, linewidth=1)
    losses.set(title="training loss", xlabel="step", ylabel="cross entropy", yscale="log")
    epochs = [epoch.epoch for epoch in result.epochs]
    tested = [100 * epoch.test_accuracy for epoch in result.epochs]
    accuracies.plot(epochs, tested, color=COLOR, marker="o", markersize=4)
    accuracies.set(title="test accuracy", xlabel="epoch", ylim=(0, 102))
    accuracies.yaxis.set_major_formatter(PercentFormatter())
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    if tested:
        label = (-4, -14)
        accuracies.annotate(
            f"{tested[-1]:.1f}%", (epochs[-1], tested[-1]), label, textcoords="offset points", ha="right"
        )
    for panel in (losses, accuracies):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    settings = result.settings
    form = "stock" if settings.stock else "fused"
    figure.suptitle(f"{settings.model} on {settings.data}, {form}, seed {settings.seed}", fontsize="medium")
    return figure
