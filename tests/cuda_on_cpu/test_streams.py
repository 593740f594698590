"""Every launcher under a CUDA graph, and on a device that is not the current one, as far as a CPU can tell.

A graph is replayed on contents that came after the capture, so a launch that was left out, or that a value decided,
shows as other bits. PyTorch's own kernels, and with them cuDNN's path, are not captured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest
import torch
from cuda_on_cpu import build, cuda_emulated
from cuda_on_cpu.streams import Runtime
from torch import Tensor

from fused_resnet.backends import cuda, reference
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool
from fused_resnet.backends.cuda import native

RELU, SILU, POOL = Activation("relu"), Activation("silu"), MaxPool((3, 3), (2, 2), (1, 1))
ONE, THREE = Conv((1, 1), (0, 0), (1, 1), 1), Conv((2, 2), (1, 1), (1, 1), 1)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    cuda_emulated.ensure()
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    runtime = Runtime(native.kernels(torch.empty(0)))
    yield runtime
    runtime.forget_places()


class Arguments:
    """Tensors of an op, filled anew by ``refill``."""

    def __init__(self, dtype: torch.dtype, conv: Conv = ONE, kernel: int = 1) -> None:
        self.dtype, self.conv = dtype, conv
        self.x, self.g = self.image(2, 40, 9, 7), self.image(2, 40, 9, 7)
        self.residual, self.weight = self.image(2, 40, 9, 7), self.image(24, 40, kernel, kernel)
        self.bn, self.residual_bn = (BatchNorm(*(torch.rand(40) for _ in range(4)), 1e-5) for _ in range(2))
        self.k_vectors = [torch.rand(24) for _ in range(3)]
        self.k_bn = BatchNorm(*(torch.rand(24) for _ in range(4)), 1e-5)
        out = conv.output_size((9, 7), (kernel, kernel))
        self.y, self.g_y = self.image(2, 24, *out), self.image(2, 24, *out)
        self.pooled, self.indices = reference.bn_act_max_pool(self.x, None, RELU, POOL)

    def image(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            parts = value if isinstance(value, tuple | list) else [value]
            yield from (part for part in parts if isinstance(part, Tensor))

    def refill(self) -> None:
        for t in self.tensors():
            t.copy_(torch.randint(9, t.shape) if t.dtype == torch.uint8 else torch.rand(t.shape) + 0.25)

    def backward(self, *mask: bool) -> Any:
        mean, g_mean, g_var = self.k_vectors
        statistics = (self.g_y, g_mean, g_var)
        prologue = (self.x, self.bn, SILU, self.weight)
        return cuda.bn_act_conv_backward(*statistics, *prologue, self.y, mean, self.conv, (*mask, False))


# Every function of the module that launches -> a call that reaches it.
CALLS: dict[str, Callable[[Arguments], Any]] = {
    "channel_statistics": lambda a: cuda.channel_statistics(a.x),
    "channel_statistics_backward": lambda a: cuda.channel_statistics_backward(
        a.g_y, a.k_vectors[1], a.k_vectors[2], a.y, a.k_vectors[0]
    ),
    "bn_add_act": lambda a: cuda.bn_add_act(a.x, a.bn, a.residual, a.residual_bn, SILU),
    "bn_add_act_backward": lambda a: cuda.bn_add_act_backward(a.g, a.x, a.bn, a.residual, a.residual_bn, SILU),
    "bn_act_max_pool": lambda a: cuda.bn_act_max_pool(a.x, a.bn, RELU, POOL),
    "bn_act_max_pool_backward": lambda a: cuda.bn_act_max_pool_backward(a.pooled, a.indices, a.x, a.bn, RELU, POOL),
    "conv_forward": lambda a: cuda.bn_act_conv(a.x, a.bn, SILU, a.weight, None, a.conv, True),
    "conv_bn_add_act": lambda a: cuda.conv_bn_add_act(a.x, a.weight, None, a.k_bn, a.y, SILU, a.conv),
    "conv_dgrad": lambda a: a.backward(True, False),
    "conv_wgrad": lambda a: a.backward(False, True),
}


def results(value: Any) -> list[Tensor]:
    return [t for t in (value if isinstance(value, tuple) else (value,)) if t is not None]


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
    probes = [build.HERE / "probes.cu"]
    module = build.load(build.build("plain", cuda_emulated.FOLDER / "probes-plain", (), probes))
    runtime = Runtime(module)
    assert module.call(what, 0) == ""
    with runtime.on_device(0) as stream:
        with runtime.capture(stream) as graph:
            assert module.call(what, stream) == "operation not permitted when stream is capturing"
        assert graph.handle is None


def test_a_value_read_back_is_refused_in_a_capture(runtime: Runtime) -> None:
    x = torch.ones(1)
    with (
        runtime.on_device(0) as stream,
        runtime.capture(stream),
        pytest.raises(AssertionError, match="got _local_scalar"),
    ):
        x.item()
