"""The kernels of probes.cu, which try the CPU runtime itself.

``python probes.py LIBRARY PROBE`` runs one and prints what it wrote first.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Probes"]


class Probes:
    """The library that :func:`cuda_on_cpu.build.build_probes` made; RuntimeError with the text of what fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def run(self, probe: str) -> list[int]:
        """What a probe makes of 0, 1 ... 63; of zeros where blocks hand over."""
        out = torch.arange(64, dtype=torch.int32).mul_(not probe.startswith("handover"))
        self._do("run", probe.encode(), _address(out))
        return out.tolist()

    def call(self, name: str, stream: int) -> None:
        """Calls what a launcher must not."""
        self._do("call", name.encode(), ctypes.c_void_p(stream))

    def multiply(self, kind: str, a: Tensor, b: Tensor) -> Tensor:
        """[16, 8], of a [16, depth] and b [8, depth], by one tensor-core instruction of this kind."""
        c = torch.empty(16, 8)
        self._do("multiply", kind.encode(), *map(_address, (a, b, c)))
        return c

    def offsets(self, channels_last: bool, lanes: int, view: Sequence[int], row: int) -> list[int]:
        """Elements before the pack at ``row`` of each of the first eight columns of [outer, channels, inner]."""
        out = torch.empty(8, dtype=torch.int64)
        numbers = map(ctypes.c_int64, (*view, row))
        self._do("offsets", ctypes.c_bool(channels_last), ctypes.c_bool(lanes == 8), *numbers, _address(out))
        return out.tolist()

    def _do(self, name: str, *args: Any) -> None:
        function = self._library[f"probe_{name}"]
        function.restype = ctypes.c_char_p
        if text := function(*args):
            raise RuntimeError(text.decode())


def _address(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


if __name__ == "__main__":
    print(*Probes(Path(sys.argv[1])).run(sys.argv[2])[:4])
