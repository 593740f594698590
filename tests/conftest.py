"""Fixtures that every test may ask for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

# On a GPU Triton is what torch.compile runs on, and its interpreter would take that place.
_MARKS = [mark.removeprefix("-m") for option, mark in pairwise(sys.argv) if "-m" in (option, mark[:2])]
ON_GPU = any(re.search(r"\bgpu\b", mark) and "not gpu" not in mark for mark in _MARKS)
INTERPRETED = find_spec("triton") is not None and not ON_GPU
collect_ignore_glob = ["backends/test_triton*.py"] if ON_GPU else []

if INTERPRETED:
    import triton_strict  # noqa: F401 (before anything imports triton)
    from triton_strict.poison import poison_empty
    from triton_strict.selection import TILES, is_worth_interpreting

import pytest
import torch
from cuda_on_cpu import cuda_emulated
from cuda_on_cpu.selection import VARIANTS, is_worth_emulating, variant

from fused_resnet import get_float32_conv_precision, set_float32_conv_precision
from fused_resnet.backends import available_backends, backends, tune, use_backend

# Each backend: the CPU one with every instruction set this processor has, the CUDA kernels run on the CPU.
TARGETS = ["reference", "cuda_emulated", *(f"cuda_emulated-{name}" for name in VARIANTS)]
if "cpu" in available_backends():
    from fused_resnet.backends import cpu

    TARGETS += [f"cpu-{isa}" for isa in cpu.supported_isas()]
if "triton" in available_backends():  # under the strict interpreter, with convolutions of ours and the library's
    TARGETS += ["triton-implicit_product", "triton-library"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what would only repeat another test: see triton_strict.selection and cuda_on_cpu.selection."""
    rules = [is_worth_emulating, *([is_worth_interpreting] if INTERPRETED else [])]
    kept = [all(rule(item) for rule in rules) for item in items]
    config.hook.pytest_deselected(items=[item for item, keep in zip(items, kept, strict=True) if not keep])
    items[:] = [item for item, keep in zip(items, kept, strict=True) if keep]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def nothing_tuned() -> Iterator[None]:
    """What was tuned on this machine is none of the tests' matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSED_RESNET_TUNE_FILE", "/nonexistent/tune.json")
        tune.clear_cache()
        yield


@pytest.fixture
def tune_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tune file of the test's own, which does not exist yet."""
    path = tmp_path / "cache" / "tune.json"
    monkeypatch.setenv("FUSED_RESNET_TUNE_FILE", str(path))
    tune.clear_cache()
    yield path
    tune.clear_cache()


@pytest.fixture(autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """ "highest", direct convolution, which is held to twice stock's error; ``@pytest.mark.precision("high")`` for the
    default of users, where Winograd may do more."""
    marker = request.node.get_closest_marker("precision")
    before, asked = get_float32_conv_precision(), marker.args[0] if marker else "highest"
    set_float32_conv_precision(asked)
    yield asked
    set_float32_conv_precision(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The op tests run on the device too: their tensors are born where the fixture says."""
    if "target" in metafunc.fixturenames:
        in_ops = metafunc.definition.path.parent.name == "ops"
        names = ("cuda", *(f"cuda-{name}" for name in VARIANTS)) if in_ops else ()
        devices = [pytest.param(name, marks=pytest.mark.gpu) for name in names]
        metafunc.parametrize("target", [*TARGETS, *devices], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test once on each backend and variant of it; under ``-m gpu`` on the device."""
    name, _, kind = request.param.partition("-")
    with ExitStack() as stack:
        if name == "cpu":
            stack.callback(cpu.set_isa, cpu.isa())
            cpu.set_isa(kind)
            stack.enter_context(threads(2))
        if name == "triton":
            monkeypatch.setenv("FUSED_RESNET_TRITON_CONV", kind)
            for tiles in ("PRODUCT", "UNALIGNED"):
                monkeypatch.setattr(f"fused_resnet.backends.triton.configs.{tiles}", TILES)
            poison_empty(monkeypatch)  # what no kernel writes is no number
        if name == "cuda_emulated":
            cuda_emulated.ensure()
            stack.enter_context(variant(kind, monkeypatch))
        if name == "cuda":
            if reason := backends()[name].unavailable:
                pytest.skip(reason)
            monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # tests compare bits
            stack.enter_context(variant(kind, monkeypatch))
            stack.enter_context(torch.device("cuda"))
        stack.enter_context(use_backend(name))
        yield request.param


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Runs the test on one thread: small layers gain nothing from more, and lose much where the machine is shared."""
    with threads(1):
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Runs the test on two threads, which a worker of pytest-xdist would not."""
    with threads(2):
        yield
