"""Fixtures that every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import cuda_emulated

from fused_resnet import get_float32_conv_precision, set_float32_conv_precision
from fused_resnet.backends import available_backends, use_backend

# Each backend, the CPU one with every instruction set this processor has, and the CUDA kernels run on the CPU.
TARGETS = ["reference", "cuda_emulated"]
if "cpu" in available_backends():
    from fused_resnet.backends import cpu

    TARGETS += [f"cpu-{isa}" for isa in cpu.supported_isas()]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """ "highest", direct convolution, which is held to twice stock's error; ``@pytest.mark.precision("high")`` for the
    default of users, where Winograd may do more."""
    marker = request.node.get_closest_marker("precision")
    before, asked = get_float32_conv_precision(), marker.args[0] if marker else "highest"
    set_float32_conv_precision(asked)
    yield asked
    set_float32_conv_precision(before)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each backend and instruction set."""
    name, _, isa = request.param.partition("-")
    if name == "cuda_emulated":
        cuda_emulated.ensure()
    before = cpu.isa() if isa else None
    if isa:
        cpu.set_isa(isa)
    with use_backend(name):
        yield request.param
    if before:
        cpu.set_isa(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs the test on one thread: small layers gain nothing from more, and lose much where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
