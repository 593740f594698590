"""A profile as a picture: the phases of the step, and the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .result import PHASES, VARIANTS, ProfileResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["profile_bars"]

COLORS = {"stock": "#7c8da3", "fused": "#d1495b"}
SHADES = {"forward": 1.0, "backward": 0.7, "optimizer": 0.4}


def profile_bars(result: ProfileResult) -> Figure:
    """The step of both variants by phase, and forward and backward of each block."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(12, 4.5), dpi=150, layout="constrained")
    step, blocks = figure.subplots(1, 2, width_ratios=(1, 2.5))
    for place, variant in enumerate(VARIANTS):
        bottom = 0.0
        for phase in PHASES:
            height = result.steps[variant][phase]
            step.bar(place, height, bottom=bottom, color=COLORS[variant], alpha=SHADES[phase], edgecolor="white")
            step.text(place, bottom + height / 2, f"{phase}\n{height:.0f}", ha="center", va="center", fontsize="small")
            bottom += height
        times = [block[variant]["forward_ms"] + block[variant]["backward_ms"] for block in result.blocks]
        positions = [index + (place - 0.5) * 0.4 for index in range(len(times))]
        blocks.bar(positions, times, 0.4, color=COLORS[variant], label=variant)
    step.set_xticks(range(len(VARIANTS)), VARIANTS)
    step.set(title=f"training step, {result.speedup:.2f} times faster", ylabel="ms")
    names = [block["block"] for block in result.blocks]
    blocks.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    blocks.set(title="forward and backward of each block", ylabel="ms")
    blocks.legend(frameon=False)
    for panel in (step, blocks):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result.model, fontsize="medium")
    return figure
