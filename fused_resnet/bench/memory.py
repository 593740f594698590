"""Memory of a step: what autograd saves, and the peak of the process or of the device."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["SavedBytes", "peak_bytes", "peak_method", "reset_peak"]

_CLEAR_REFS = Path("/proc/self/clear_refs")


class SavedBytes:
    """Within its ``with`` block, notes what autograd saves for backward; the graph must live until the block's end."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}  # bytes by address
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def count(self, excluded: Iterable[Tensor]) -> int:
        """Bytes of the distinct storages noted, those of ``excluded`` left out."""
        left_out = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        return sum(size for address, size in self._storages.items() if address not in left_out)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)


def peak_method(device: str) -> str:
    """How :func:`peak_bytes` knows the peak."""
    if device == "cuda":
        return "torch.cuda.max_memory_allocated"
    return "VmHWM, reset after warm-up" if _clear_peak() else "peak resident size, warm-up included"


def reset_peak(device: str) -> None:
    """Starts the peak anew from what is in use now, where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        _clear_peak()


def peak_bytes(device: str) -> int:
    """Largest memory in use since :func:`reset_peak`: of the device's tensors, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if _CLEAR_REFS.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _clear_peak() -> bool:
    try:
        _CLEAR_REFS.write_text("5")  # man 5 proc: resets the peak resident set size
    except OSError:
        return False
    return True
