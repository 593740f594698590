"""The memory this backend holds on to: csrc/cpu/workspace.h and csrc/cpu/tensor_memory.h."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import NamedTuple

import torch

from ... import _cpu

__all__ = ["TensorMemory", "connect_profiler", "empty_cache", "free_workspace", "tensor_memory", "workspace_bytes"]

free_workspace, workspace_bytes = _cpu.free_workspace, _cpu.workspace_bytes


class TensorMemory(NamedTuple):
    """Bytes in large tensors that live, and bytes kept of those that were freed."""

    used: int
    kept: int


def tensor_memory() -> TensorMemory:
    """What the ops' large tensors hold, of all threads."""
    return TensorMemory(*_cpu.tensor_memory())


def empty_cache() -> None:
    """Gives back to the system what freed tensors have left, and the working memory of the calling thread."""
    _cpu.free_kept_memory()
    free_workspace()


def connect_profiler() -> bool:
    """Lets ``torch.profiler`` see the large tensors, as it sees those of PyTorch's own allocator; whether it can.

    It is told through two functions of libc10, by their names in C++.
    """
    try:
        c10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        functions = (c10._ZN3c1022memoryProfilingEnabledEv, c10._ZN3c1027reportMemoryUsageToProfilerEPvlmmNS_6DeviceE)
    except (OSError, AttributeError):
        return False
    _cpu.set_memory_profiler(*(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions))
    return True
