"""Whose kernel computes a convolution on a GPU: ours, with prologue and epilogue, or the vendor library's.

An environment variable overrules everything; then what ``fused-resnet tune`` measured on the device; then the default,
which is conservative, for no GPU has measured it: see :func:`is_bound_by_bytes`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Conv
from .choices import choose

__all__ = ["ConvKernels", "is_bound_by_bytes"]


class ConvKernels(NamedTuple):
    """The two ways that a backend has, by name, and the variable that forces one."""

    backend: str
    environment: str
    ours: str
    library: str

    def forced(self) -> str | None:
        """The name in the environment, None for none or ``auto``; ValueError for an unknown one."""
        name = os.environ.get(self.environment)
        if not name or name == "auto":
            return None
        if name not in (self.ours, self.library):
            raise ValueError(f"{self.environment}: expected auto, {self.ours} or {self.library}, got {name!r}")
        return name

    def is_ours(self, op: str, by_default: bool, x: Tensor, weight: Tensor, conv: Conv) -> bool:
        """Whether our kernel computes ``op``; ``by_default`` where nothing was forced or tuned."""
        name = self.forced()
        if name is None:
            names, default = (self.ours, self.library), self.ours if by_default else self.library
            name = choose(self.backend, f"{op}.kernel", names, default, x, weight, conv)
        return name == self.ours


def is_bound_by_bytes(dtype: torch.dtype, weight_shape: Sequence[int], conv: Conv) -> bool:
    """1x1 without padding or groups in 16 bits: a plain product, where a pass over a tensor saved is time saved.

    Larger filters are bound by arithmetic, where the vendor library is hard to beat, and float32 likewise.
    """
    return (
        dtype.itemsize == 2 and weight_shape[2] == weight_shape[3] == 1 and conv.padding == (0, 0) and conv.groups == 1
    )
