"""Fused convolution, batch norm, activation and residual add for training and serving ResNets."""

from . import functional, models, nn, ops
from .backends import available_backends, use_backend
from .backends.precision import get_float32_conv_precision, set_float32_conv_precision
from .fuse import FuseReport, fuse, unfuse
from .info import info, version

__version__ = version()

__all__ = [
    "FuseReport",
    "__version__",
    "available_backends",
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
