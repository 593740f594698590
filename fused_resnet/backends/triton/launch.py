"""From tensors to launches: what every op of this backend does around its kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..arguments import BatchNorm
from ..precision import tf32_is_allowed
from .configs import Config

__all__ = ["View", "ceil_div", "dense_norm", "float32_precision", "launch", "options", "reference_if_empty"]


class View(NamedTuple):
    """A dense image as kernels walk it: ``images`` planes of ``pixels`` x ``channels``.

    In channels_last the batch is one plane of N H W pixels; in contiguous layout each image is one of H W.
    """

    images: int
    pixels: int
    channels: int
    channels_last: bool

    @staticmethod
    def of(x: Tensor) -> View:
        """The view of a dense [N, C, H, W]."""
        n, c, h, w = x.shape
        if x.is_contiguous(memory_format=torch.channels_last):
            return View(1, n * h * w, c, True)
        return View(n, h * w, c, False)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def dense_norm(bn: BatchNorm | None) -> BatchNorm | None:
    """``bn`` with vectors that kernels may walk."""
    if bn is None:
        return None
    if all(v is None or v.is_contiguous() for v in bn[:4]):
        return bn
    mean, var, weight, bias = (v if v is None else v.contiguous() for v in bn[:4])
    assert mean is not None and var is not None
    return BatchNorm(mean, var, weight, bias, bn.eps)


forced_precision: str | None = None  # what tests ask of float32_precision


def float32_precision(x: Tensor) -> str:
    """How a product of float32 tiles is computed: in TF32 where PyTorch's own convolutions would be."""
    if forced_precision is not None:
        return forced_precision
    return "tf32" if x.dtype == torch.float32 and x.is_cuda and tf32_is_allowed() else "ieee"


def options(config: Config, hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """What ``config`` asks of Triton's compiler beside the tile; ``hip`` for AMD's."""
    registers = {"maxnreg": config.registers} if config.registers and not hip else {}
    return {"num_warps": config.warps, "num_stages": config.stages} | registers


def run(kernel: Any, programs: int, device: torch.device, config: Config, *args: Any, **constants: Any) -> None:
    """Runs ``kernel`` in a one-dimensional grid on the current stream of ``device``."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, **constants, **config.tile, **options(config))


def launch(kernel: Any, programs: int, device: torch.device, config: Config, *args: Any, **constants: Any) -> None:
    """The one way to a kernel: whoever replaces :func:`run` sees every launch."""
    run(kernel, programs, device, config, *args, **constants)


def reference_if_empty(function: Callable[..., Any]) -> Callable[..., Any]:
    """An op that hands tensors without elements to the reference, since a grid of no programs cannot be launched."""

    @wraps(function)
    def wrapper(*args: Any) -> Any:
        # The first argument is x or the gradient of what was made of it: where one image is empty, all are.
        return (function if args[0].numel() else getattr(reference, function.__name__))(*args)

    return wrapper
