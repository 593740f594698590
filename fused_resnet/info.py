"""What this installation has and what it does: the answer to "why is it not faster here?"."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import torch

from .backends import DEFAULT_ORDER, available_backends, backends, fallbacks, requested_backend
from .backends.precision import get_float32_conv_precision

__all__ = ["info", "version"]


def version() -> str:
    """The installed version, or ``"0+unknown"`` in a checkout that is not installed."""
    try:
        return metadata.version("fused-resnet")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def info() -> dict[str, Any]:
    """Facts about this installation and process, ready for JSON.

    ``backends`` maps each name to ``"available"`` or to why it is absent; ``default_backend`` maps device types to
    names; ``isa`` is the instruction set that the ``cpu`` backend runs on, None without it; ``fallbacks`` maps each
    reason for which a call went to ``reference`` to the number of such calls so far.
    """
    return {
        "version": version(),
        "torch": torch.__version__,
        "backends": {b.name: b.unavailable or "available" for b in backends().values()},
        "requested_backend": requested_backend(),
        "default_backend": {
            device: next(name for name in order if name in available_backends())
            for device, order in DEFAULT_ORDER.items()
        },
        "isa": _isa(),
        "threads": torch.get_num_threads(),
        "float32_conv_precision": get_float32_conv_precision(),
        "fallbacks": fallbacks(),
    }


def _isa() -> str | None:
    if backends()["cpu"].unavailable is not None:
        return None
    isa: str = importlib.import_module("fused_resnet._cpu").isa()
    return isa
