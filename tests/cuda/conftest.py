"""What the tests of the CUDA kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cuda_on_cpu import cuda_emulated
from support.precision import convolutions_in

from fused_resnet.backends import use_backend


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every convolution runs on the fused kernels, those of float32 without tf32, executed on the CPU."""
    cuda_emulated.ensure()
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    with use_backend(cuda_emulated.NAME), convolutions_in("ieee"):
        yield


@pytest.fixture
def tf32(fused: None) -> Iterator[None]:
    """Those of float32 may round to tf32."""
    with convolutions_in("tf32"):
        yield
