"""Fused convolution, batch norm, activation and residual add for training and serving ResNets."""

import importlib
from typing import Any

from . import functional, models, nn, ops
from .backends import available_backends, empty_cache, use_backend
from .backends.precision import get_float32_conv_precision, set_float32_conv_precision
from .fuse import FuseReport, fuse, unfuse
from .info import info, version

__version__ = version()


def __getattr__(name: str) -> Any:
    """``bench`` and ``profile``, imported when they are first asked for."""
    if name in ("bench", "profile"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FuseReport",
    "__version__",
    "available_backends",
    "empty_cache",
    "functional",
    "fuse",
    "get_float32_conv_precision",
    "info",
    "models",
    "nn",
    "ops",
    "set_float32_conv_precision",
    "unfuse",
    "use_backend",
]
