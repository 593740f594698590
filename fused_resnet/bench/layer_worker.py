"""The child process of a layer benchmark; see :mod:`.worker`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .geometry import Layer
from .layer_trial import LayerTrial
from .worker import serve

__all__ = ["main"]


def _prepare(trial: LayerTrial, layer: dict[str, Any], pass_name: str) -> dict[str, Any]:
    errors = trial.prepare(Layer.from_json(layer), pass_name)
    return {"relative_errors": errors, "algorithm": trial.algorithm()}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "peak": lambda trial: {"flop_per_s": trial.peak()},
    "prepare": _prepare,
    "measure": lambda trial, order: trial.measure(order),
}


def main() -> None:
    """Serves layers."""
    serve(LayerTrial, COMMANDS)


if __name__ == "__main__":
    main()
