"""Fusion of existing models in place, and back: see :func:`fuse` and :func:`unfuse`."""

from .report import FuseEntry, FuseReport
from .swap import fuse, unfuse

__all__ = ["FuseEntry", "FuseReport", "fuse", "unfuse"]
