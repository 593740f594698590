"""Throughput and memory of fused ResNets against stock PyTorch, measured so that one can believe it."""

from .child import BenchError
from .result import BenchResult
from .runner import run, run_settings
from .settings import Settings
from .variants import VARIANTS, Variant

__all__ = ["VARIANTS", "BenchError", "BenchResult", "Settings", "Variant", "run", "run_settings"]
