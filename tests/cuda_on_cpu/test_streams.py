"""Every launcher under a CUDA graph, and on a device that is not the current one, as far as a CPU can tell.

A graph is replayed on contents that came after the capture, so a launch that was left out, or that a value decided,
shows as other bits. PyTorch's own kernels, and with them cuDNN's path, are not captured here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
import torch
from cuda_on_cpu import build, calls, cuda_emulated
from cuda_on_cpu.calls import (
    CALLS,
    THREE,
    WITH_WORKSPACE,
    Arguments,
    bits_agree_at_once,
    results,
    sharing_workspaces,
)
from cuda_on_cpu.probes import Probes
from cuda_on_cpu.streams import Runtime

from fused_resnet.backends.cuda import native


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    cuda_emulated.ensure()
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    runtime = Runtime.of_kernels()
    yield runtime
    runtime.forget_places()


def test_every_launcher_is_here(runtime: Runtime) -> None:
    names = {name for name in dir(native.kernels(torch.empty(0))) if not name.startswith("_")}
    assert {name for name in names if not name.endswith("_workspace")} == set(CALLS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_computes_what_a_call_does(runtime: Runtime, name: str, dtype: torch.dtype) -> None:
    arguments = Arguments(dtype, THREE, 3) if name.startswith("conv") else Arguments(dtype)
    with runtime.on_device(0) as stream:
        with runtime.capture(stream) as graph:
            captured = results(CALLS[name](arguments))
        assert graph.handle and graph.launches >= 1
        for _ in range(2):
            arguments.refill()
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(captured, results(CALLS[name](arguments)), strict=True))


@pytest.mark.parametrize("devices", [(0, 0), (0, 1)], ids=["one-device", "two-devices"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_two_host_threads_compute_what_one_does(
    runtime: Runtime, name: str, dtype: torch.dtype, devices: tuple[int, int]
) -> None:
    assert all(bits_agree_at_once(runtime, name, dtype, devices))


@pytest.mark.parametrize("name", WITH_WORKSPACE)
def test_a_workspace_that_host_threads_share_shows(runtime: Runtime, name: str) -> None:
    torch.manual_seed(1)  # what another test left in freed memory must not pass for a result
    with sharing_workspaces():
        assert not all(bits_agree_at_once(runtime, name, torch.bfloat16, (0, 0)))


def races_of_two_streams(workspaces: str, names: Sequence[str]) -> set[str]:
    """The launchers, called one after another, of which ThreadSanitizer reports a race between two host threads."""
    cuda_emulated.ensure()
    module = build.build("tsan", cuda_emulated.FOLDER)
    done = subprocess.run(
        [sys.executable, calls.__file__, str(module), workspaces, *names],
        env=build.environment("tsan"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, build.SANITIZER_EXIT_CODE), done.stderr[-4000:]
    reports = [part.split("\n", 1) for part in done.stderr.split("at once: ")[1:]]
    assert [name for name, _ in reports] == list(names)
    return {name for name, report in reports if "WARNING: ThreadSanitizer: data race" in report}


@pytest.mark.timeout(900)  # where other tests share the machine
def test_two_streams_do_not_race() -> None:
    assert not races_of_two_streams("own", list(CALLS))


@pytest.mark.timeout(900)
def test_two_streams_race_where_they_share_a_workspace() -> None:
    """ThreadSanitizer keeps the last four accesses to a word, so that one call in three misses a race.

    It rarely sees channel_statistics, where the blocks' counter orders all of the second grid but its first blocks.
    """
    unseen = {name for name in WITH_WORKSPACE if name != "channel_statistics"}
    for _ in range(5):
        if unseen:
            unseen -= races_of_two_streams("shared", sorted(unseen) * 2)
    assert not unseen


@pytest.mark.parametrize("name", CALLS)
def test_the_tensors_device_is_made_current_and_the_former_again(runtime: Runtime, name: str) -> None:
    with runtime.on_device(1):
        arguments = Arguments(torch.bfloat16)
        for t in arguments.tensors():
            runtime.place(t, 1)
        there = results(CALLS[name](arguments))
        assert runtime.current_device == 0
    with pytest.raises(RuntimeError, match="points to memory of a device that is not the current one"):
        CALLS[name](arguments)  # as on device 0
    assert runtime.current_device == 0
    runtime.forget_places()
    assert all(torch.equal(a, b) for a, b in zip(there, results(CALLS[name](arguments)), strict=True))


def queue_is(device: int, stream: int) -> AbstractContextManager[Any]:
    return mock.patch.object(native, "queue", lambda x: (device, stream))


def test_a_stream_of_another_device_is_refused(runtime: Runtime) -> None:
    arguments = Arguments(torch.float32)
    with (
        runtime.on_device(1) as stream,
        queue_is(0, stream),
        pytest.raises(RuntimeError, match=r"bn_add_act: the stream is of a device that is not the current one"),
    ):
        CALLS["bn_add_act"](arguments)
    with queue_is(2, 0), pytest.raises(RuntimeError, match="bn_add_act: invalid device ordinal"):
        CALLS["bn_add_act"](arguments)
    assert runtime.current_device == 0


def test_a_launch_beside_the_captured_stream_breaks_the_capture(runtime: Runtime) -> None:
    arguments = Arguments(torch.float32)
    with (
        runtime.on_device(0) as stream,
        runtime.capture(stream) as graph,
        queue_is(0, 0),
        pytest.raises(RuntimeError, match="a launch to the legacy stream while another is capturing"),
    ):
        CALLS["bn_add_act"](arguments)
    assert graph.handle is None


@pytest.mark.parametrize("what", ["allocate", "free", "copy", "synchronize", "synchronize_stream"])
def test_what_a_launcher_must_not_do_is_refused_in_a_capture(what: str) -> None:
    cuda_emulated.require_compiler()
    probes = Probes(build.build_probes("plain", cuda_emulated.FOLDER))
    runtime = Runtime(probes.path)
    probes.call(what, 0)
    with runtime.on_device(0) as stream:
        with (
            runtime.capture(stream) as graph,
            pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"),
        ):
            probes.call(what, stream)
        assert graph.handle is None


def test_a_value_read_back_is_refused_in_a_capture(runtime: Runtime) -> None:
    x = torch.ones(1)
    with (
        runtime.on_device(0) as stream,
        runtime.capture(stream),
        pytest.raises(AssertionError, match="got _local_scalar"),
    ):
        x.item()
