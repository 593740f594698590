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

__all__ = ["NAME", "ensure", "require_compiler"]

NAME = "cuda_emulated"
FOLDER = Path(__file__).resolve().parent.parent.parent / "build" / "cuda_on_cpu"

backends.register(backends.Backend(NAME, "cuda", ("cpu",), None))


def require_compiler() -> None:
    """Skips the test where a build lacks something; fails it where ``FUSED_RESNET_COMPILE_GATE=required``, as in CI."""
    if (reason := build.missing()) is None:
        return
    if os.environ.get("FUSED_RESNET_COMPILE_GATE") == "required":
        pytest.fail(f"{NAME} needs what is missing: {reason}")
    pytest.skip(f"{NAME}: {reason}")


def ensure() -> None:
    """Builds what is not up to date and serves CPU tensors with it; without a compiler see :func:`require_compiler`."""
    require_compiler()
    native.serve("cpu", _module())


@cache
def _module() -> ModuleType:
    mode = os.environ.get("CUDA_ON_CPU_MODE", "plain")
    return build.load(build.build(mode, FOLDER))
