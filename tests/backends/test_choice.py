"""Which backend and which instruction set run, and what happens where one is missing."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

import fused_resnet
from fused_resnet import backends, ops
from fused_resnet.backends import reference


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in a fresh interpreter."""
    import os

    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=False
    )


def test_default_is_the_native_backend() -> None:
    chosen = backends.choose("bn_add_act", torch.zeros(1, 1, 1, 1))
    assert chosen.__module__ == "fused_resnet.backends.cpu.bn_add_act"


def test_use_backend_is_nested_and_undone() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with fused_resnet.use_backend("reference"):
        assert backends.choose("bn_add_act", x) is reference.bn_add_act
        with fused_resnet.use_backend("cpu"):
            assert backends.choose("bn_add_act", x) is not reference.bn_add_act
        assert backends.choose("bn_add_act", x) is reference.bn_add_act
    assert backends.requested_backend() is None


def test_backward_runs_on_the_backend_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        reference, "bn_add_act_backward", lambda *a: calls.append(1) or (torch.ones_like(a[1]),) * 1 + (None,) * 3
    )
    x = torch.randn(1, 2, 3, 3, requires_grad=True)
    with fused_resnet.use_backend("reference"):
        out = ops.bn_add_act(x)
    out.sum().backward()
    assert calls == [1]


def test_unknown_name_lists_the_known_ones() -> None:
    with (
        pytest.raises(ValueError, match=r"expected a backend of reference, cpu, .*got 'gpu'"),
        fused_resnet.use_backend("gpu"),
    ):
        pass


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RESNET_BACKEND", "reference")
    assert backends.choose("bn_add_act", torch.zeros(1, 1, 1, 1)) is reference.bn_add_act
    monkeypatch.setenv("FUSED_RESNET_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=r"FUSED_RESNET_BACKEND: expected a backend of .*got 'nonsense'"):
        ops.bn_add_act(torch.zeros(1, 1, 1, 1))


def test_a_case_that_is_lacking_goes_to_reference_once_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    from fused_resnet.backends import cpu

    monkeypatch.setattr(cpu, "unsupported", lambda *_: "no kernel for this test")
    monkeypatch.setattr(backends, "_fallbacks", {})
    x = torch.randn(1, 2, 3, 3)
    with pytest.warns(RuntimeWarning, match=r"reference path: backend 'cpu', bn_add_act: no kernel for this test"):
        out = ops.bn_add_act(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.bn_add_act(x)
    assert torch.equal(out, x.relu())
    assert list(backends.fallbacks().values()) == [2]
    assert "no kernel for this test" in str(fused_resnet.info())


def test_without_the_native_module_ops_run_on_reference() -> None:
    done = run(
        "import sys; sys.modules['fused_resnet._cpu'] = None\n"
        "import torch, fused_resnet\n"
        "assert 'cpu' not in fused_resnet.available_backends()\n"
        "x = torch.randn(1, 4, 3, 3, requires_grad=True)\n"
        "fused_resnet.ops.bn_add_act(x).sum().backward()\n"
        "assert torch.equal(x.grad, (x > 0).float())\n"
        "print(fused_resnet.info()['backends']['cpu'])\n"
    )
    assert done.returncode == 0, done.stderr
    assert "fused_resnet._cpu" in done.stdout


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
def test_environment_variable_forces_the_instruction_set(isa: str) -> None:
    from fused_resnet.backends import cpu

    done = run("import fused_resnet.backends.cpu as cpu; print(cpu.isa())", FUSED_RESNET_ISA=isa)
    if isa in cpu.supported_isas():
        assert done.stdout.strip() == isa, done.stderr
    else:
        known = ", ".join(cpu.supported_isas())
        assert f"ValueError: FUSED_RESNET_ISA: expected one of {known} on this processor, got '{isa}'" in done.stderr


def test_default_instruction_set_is_the_widest() -> None:
    done = run(
        "import fused_resnet.backends.cpu as cpu; print(cpu.isa(), cpu.supported_isas()[0])", FUSED_RESNET_ISA=""
    )
    used, widest = done.stdout.split()
    assert used == widest


def test_thread_count_follows_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread and two add up in another order, and both near float64."""
    x = torch.randn(8, 33, 40, 41).contiguous(memory_format=torch.channels_last)
    weight = torch.eye(33)[:, :, None, None]
    want = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            _, mean, var = ops.bn_act_conv(x, None, "identity", weight)
            assert torch.allclose(mean.double(), want[1], atol=1e-7) and torch.allclose(
                var.double(), want[0], rtol=1e-6
            )
    finally:
        torch.set_num_threads(before)
