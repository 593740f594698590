"""Triton's interpreter made strict: kernels run on CPU tensors, program by program, under checks no GPU has.

The interpreter that comes with Triton computes in bfloat16 on raw 16-bit integers, knows no bounds, runs programs in
order, reads masked lanes as zero and needs a driver to tune. Importing this package, before any kernel is defined,
replaces those parts for the process:

- :mod:`.numerics`: bfloat16 rounded to nearest even, products of 16-bit types and of TF32 accumulated in float32;
- :mod:`.memory`: bounds and alignment per tensor, races between programs, duplicate writes, poisoned masked lanes,
  bytes loaded and stored per tensor;
- :mod:`.launch`: programs in a random order, the tuner without a driver;
- :mod:`.speed`: shortcuts.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from . import launch, memory, numerics, speed
from .errors import KernelError
from .launch import only_programs, program_order
from .memory import Traffic, record_traffic

__all__ = ["KernelError", "Traffic", "only_programs", "program_order", "record_traffic"]

numerics.install()
memory.install()
launch.install()
speed.install()
