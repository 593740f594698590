"""What the tensor cores multiply and the asynchronous copies move, counted by the CPU runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["Work", "counted"]


class Work(ctypes.Structure):
    """Counts of all launches, as in scheduler.h."""

    _fields_ = (
        ("products", ctypes.c_uint64),
        ("bytes_copied", ctypes.c_uint64),
        ("bytes_of_zeros", ctypes.c_uint64),
    )
    products: int  # mma.sync, one a warp
    bytes_copied: int  # by cp.async, from device memory
    bytes_of_zeros: int  # by cp.async, in place of what is not there


@contextmanager
def counted(module: ModuleType) -> Iterator[Work]:
    """The work of what is launched within this context, on a module of :mod:`cuda_on_cpu.build`, once it ends."""
    assert module.__file__
    total = Work.in_dll(ctypes.CDLL(module.__file__), "cuda_on_cpu_work")
    total.products = total.bytes_copied = total.bytes_of_zeros = 0
    counts = Work()
    yield counts
    ctypes.pointer(counts)[0] = total
