"""``fused-resnet bench --layers``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ..bench import BenchError, BenchResult
from ..bench.layers import layer_settings, run_layers
from .errors import BAD_INPUT, FAILED, CommandError, end_interrupted, shown
from .output import progress_bar, write_json

__all__ = ["bench_layers"]


def bench_layers(json: Path | None, others: Mapping[str, object], fields: Mapping[str, Any]) -> None:
    """Runs the layer benchmark and shows it.

    ``fields`` are those of its settings; ``others`` has a true value for each option given that it has no use for.
    """
    given = [f"--{option}" for option, is_given in others.items() if is_given]
    if given:
        known = ", ".join(f"--{option}" for option in others)
        raise CommandError(f"--layers: expected none of {known} beside it, got {', '.join(given)}", BAD_INPUT)

    def write(result: BenchResult) -> None:
        write_json(json, result.to_dict())

    with shown(BAD_INPUT, ValueError, ImportError):
        settings = layer_settings(**fields)
    with shown(FAILED, BenchError), progress_bar() as progress:
        result = run_layers(settings, progress, on_rows=write)
    if result.rows:
        from ..bench.layer_table import layer_table

        Console().print(layer_table(result.rows))
    if result.interrupted:
        end_interrupted(json)
