"""The backend ``cuda_emulated``: the Python and C++ of ``cuda`` on CPU tensors.

``CUDA_ON_CPU_MODE`` chooses the build, ``plain`` unless told; the sanitizers' libraries must then be preloaded.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from cuda_on_cpu import build

from fused_resnet import backends
from fused_resnet.backends.cuda import native

__all__ = ["NAME", "ensure"]

NAME = "cuda_emulated"
FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "cuda_on_cpu"

backends.register(backends.Backend(NAME, "cuda", ("cpu",), None))


def ensure() -> None:
    """Builds what is not up to date and serves CPU tensors with it; skips the test where a build lacks something."""
    reason = build.missing()
    if reason is not None:
        pytest.skip(f"{NAME}: {reason}")
    native.serve("cpu", _module())


@cache
def _module() -> ModuleType:
    mode = os.environ.get("CUDA_ON_CPU_MODE", "plain")
    return build.load(build.build(mode, FOLDER / mode))
