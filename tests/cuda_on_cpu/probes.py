"""The kernels of probes.cu, which try the CPU runtime itself.

``python probes.py LIBRARY PROBE`` runs one and prints what it wrote first; it does without PyTorch, which takes
seconds to import.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Probes"]


class Probes:
    """The library that :func:`cuda_on_cpu.build.build_probes` made; RuntimeError with the text of what fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))

    def run(self, probe: str) -> list[int]:
        """What a probe makes of 0, 1 ... 63; of zeros where blocks hand over."""
        out = (ctypes.c_int32 * 64)(*([0] * 64 if probe.startswith("handover") else range(64)))
        self._do("run", probe.encode(), out)
        return list(out)

    def call(self, name: str, stream: int) -> None:
        """Calls what a launcher must not."""
        self._do("call", name.encode(), ctypes.c_void_p(stream))

    def multiply(self, kind: str, a: Tensor, b: Tensor) -> Tensor:
        """[16, 8], of a [16, depth] and b [8, depth], by one tensor-core instruction of this kind."""
        c = a.new_empty(16, 8).float()
        self._do("multiply", kind.encode(), *(ctypes.c_void_p(t.data_ptr()) for t in (a, b, c)))
        return c

    def offsets(self, channels_last: bool, lanes: int, view: Sequence[int], row: int) -> list[int]:
        """Elements before the pack at ``row`` of each of the first eight columns of [outer, channels, inner]."""
        out = (ctypes.c_int64 * 8)()
        numbers = map(ctypes.c_int64, (*view, row))
        self._do("offsets", ctypes.c_bool(channels_last), ctypes.c_bool(lanes == 8), *numbers, out)
        return list(out)

    def _do(self, name: str, *args: Any) -> None:
        function = self._library[f"probe_{name}"]
        function.restype = ctypes.c_char_p
        if text := function(*args):
            raise RuntimeError(text.decode())


if __name__ == "__main__":
    print(*Probes(Path(sys.argv[1])).run(sys.argv[2])[:4])
