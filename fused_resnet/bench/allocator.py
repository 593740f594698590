"""glibc's malloc, set anew within a running process: ``mallopt`` does what the variables in ``ALLOCATORS`` do at start.

There is no way back to the default, as malloc has stopped adapting its thresholds then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from .settings import ALLOCATORS

__all__ = ["stages", "use_allocator"]

PARAMETERS = {"MALLOC_MMAP_MAX_": -4, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -3}  # of malloc.h
NEVER_TRIM = -1  # mallopt takes an int
INT_MAX = 2**31 - 1


def use_allocator(name: str) -> None:
    """Goes on under the setting ``name`` of ``ALLOCATORS``; without effect, as those, where malloc is not glibc's."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for variable, text in ALLOCATORS[name].items():
        value = int(text)
        if mallopt is not None and mallopt(PARAMETERS[variable], value if value <= INT_MAX else NEVER_TRIM) != 1:
            raise RuntimeError(f"mallopt refused {variable}={text}")


def stages(allocators: Sequence[str]) -> list[list[str]]:
    """The settings, split where one needs a new process: only from ``default`` can a process go on to another."""
    return [["default", "tuned"]] if list(allocators) == ["default", "tuned"] else [[name] for name in allocators]
