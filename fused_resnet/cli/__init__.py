"""The command line: ``fused-resnet``, also ``python -m fused_resnet``."""

from .app import main

__all__ = ["main"]
