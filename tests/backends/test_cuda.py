"""The CUDA backend around its kernels: the module without a device, registration, errors of a launch, the build."""

from __future__ import annotations

import runpy
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch
from cuda_on_cpu import cuda_emulated

from fused_resnet import backends, ops, use_backend
from fused_resnet.backends.cuda import native

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(find_spec("fused_resnet._cuda") is None, reason="fused_resnet._cuda is not built: no nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_module_imports_without_a_driver_and_launches_raise() -> None:
    from fused_resnet import _cuda

    assert _cuda.channel_statistics_workspace(0, (4096, 64, 1)) > 0
    with pytest.raises(RuntimeError, match=r"^channel_statistics: \w+"):
        _cuda.channel_statistics((0, 0), 0, (4096, 64, 1), 0, 0, 0, 0)
    assert backends.backends()["cuda"].unavailable == "no CUDA device"


def test_absence_has_a_reason() -> None:
    if not torch.cuda.is_available():
        assert backends.backends()["cuda"].unavailable is not None
        with pytest.raises(ValueError, match=r"backend 'cuda' is not available here: "), use_backend("cuda"):
            pass


def test_a_registered_backend_is_no_default_and_its_name_is_taken() -> None:
    assert cuda_emulated.NAME in backends.available_backends()
    assert all(cuda_emulated.NAME not in order for order in backends.DEFAULT_ORDER.values())
    with pytest.raises(ValueError, match="expected a name that is not taken, got 'cuda_emulated'"):
        backends.register(backends.Backend(cuda_emulated.NAME, "cuda", ("cpu",), None))


def test_error_of_a_launch_names_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_emulated.ensure()
    monkeypatch.setitem(native.DTYPES, torch.float32, 99)
    with pytest.raises(RuntimeError, match=r"^bn_add_act: invalid argument"), use_backend(cuda_emulated.NAME):
        ops.bn_add_act(torch.zeros(1, 2, 3, 3))


def test_a_tensor_that_is_not_aligned_takes_the_scalar_kernel() -> None:
    cuda_emulated.ensure()
    x = torch.randn(1 + 2 * 8 * 4 * 4)[1:].view(2, 8, 4, 4)
    assert x.data_ptr() % 16 != 0
    with use_backend(cuda_emulated.NAME):
        assert torch.equal(ops.bn_add_act(x), x.relu())


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, which then builds nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def test_cuda_can_be_left_out(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSED_RESNET_CUDA", "FUSED_RESNET_NATIVE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "0")
            assert setup["nvcc"]() is None
            assert "fused_resnet._cuda" not in [extension.name for extension in setup["extensions"]()]


def test_cuda_home_comes_before_path(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nprintf 'compute_80\\ncompute_90\\n'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert setup["nvcc"]() == str(compiler)
    assert "fused_resnet._cuda" in [extension.name for extension in setup["extensions"]()]
    setup["write_cuda_ninja_file"](tmp_path / "build.ninja", tmp_path / "_cuda.so")
    text = (tmp_path / "build.ninja").read_text().replace("$\n    ", "")
    assert "code=sm_80 -gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_80,code=compute_80 " in text
    assert "code=compute_80 -gencode=arch=compute_90,code=compute_90" in text
    assert "sm_120" not in text  # what this nvcc does not know
    assert "-cudart=static" in text


def test_source_distribution_has_the_cuda_sources() -> None:
    tracked = subprocess.run(["git", "ls-files", "csrc"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    suffixes = {Path(name).suffix for name in tracked.split()}
    patterns = (ROOT / "MANIFEST.in").read_text().split()
    assert suffixes <= {pattern.removeprefix("*") for pattern in patterns}
