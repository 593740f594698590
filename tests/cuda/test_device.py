"""The CUDA backend on a device: every kernel, both tiles of the convolution, CUDA graphs, streams, a second device.

Kernels are called in the test's own thread: autograd would run a backward on a device in another one, which a choice
that is forced does not reach. The same calls run on the emulated kernels, where there is no device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from cuda_on_cpu import cuda_emulated, exercises
from cuda_on_cpu.conv_exercises import CONV_EXERCISES
from support.cases import image
from support.parity import randomise_batch_norms
from support.precision import convolutions_in
from torch import Tensor, nn

from fused_resnet import use_backend
from fused_resnet.backends import backends
from fused_resnet.backends.choices import force
from fused_resnet.nn import Bottleneck

gpu = pytest.mark.gpu
TILES = [(family, tile) for family in CONV_EXERCISES for tile in ("small", "large")]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors are born on the device, and every convolution runs on the fused kernels."""
    if reason := backends()["cuda"].unavailable:
        pytest.skip(reason)
    monkeypatch.setenv("FUSED_RESNET_CUDA_CONV", "fused")
    with use_backend("cuda"), torch.device("cuda"), convolutions_in("ieee"):
        yield


@gpu
@pytest.mark.parametrize("family", exercises.EXERCISES)
def test_every_kernel(family: str, on_device: None) -> None:
    exercises.verify(family)


@gpu
@pytest.mark.parametrize(("family", "tile"), TILES)
def test_both_tiles(family: str, tile: str, on_device: None) -> None:
    with force({"bn_act_conv.tile": tile}):
        exercises.verify(family)


@pytest.mark.parametrize(("family", "tile"), TILES)
def test_both_tiles_emulated(family: str, tile: str) -> None:
    cuda_emulated.ensure()
    with force({"bn_act_conv.tile": tile}):
        exercises.verify(family)


def bottleneck() -> nn.Module:
    return randomise_batch_norms(Bottleneck(64, 16)).to(memory_format=torch.channels_last).train()


def step(model: nn.Module, x: Tensor, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Forward and backward; the output, all gradients and the running statistics, which are the model's own."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        y = model(x)
    y.backward(weights.to(y.dtype))
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def assert_same_bits(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want) > 12
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(a.cpu(), b.cpu()), f"tensor {i}"


dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)


@gpu
@dtypes
def test_a_cuda_graph_of_a_training_step(dtype: torch.dtype, on_device: None) -> None:
    """Replayed on contents that came after the capture."""
    model, x, weights = bottleneck(), image(4, 64, 14, 14), image(4, 64, 14, 14)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is allocated once and for all
        for _ in range(3):
            step(model, x, weights, dtype)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        captured = step(model, x, weights, dtype)
    for _ in range(2):
        eager = copy.deepcopy(model)
        for tensor in (x, weights):
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert_same_bits(captured, step(eager, x, weights, dtype))


@gpu
@dtypes
def test_a_training_step_on_a_side_stream(dtype: torch.dtype, on_device: None) -> None:
    """A launch elsewhere would not wait for the input, which comes late on this stream."""
    model, late, weights = bottleneck(), image(4, 64, 14, 14), image(4, 64, 14, 14)
    want = step(copy.deepcopy(model), late, weights, dtype)
    x, side = torch.zeros_like(late), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
        got = step(model, x.copy_(late), weights, dtype)
    torch.cuda.current_stream().wait_stream(side)
    assert_same_bits(got, want)


@gpu
@dtypes
def test_a_device_that_is_not_the_current_one(dtype: torch.dtype, on_device: None) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device alone")
    model, x, weights = bottleneck(), image(4, 64, 14, 14), image(4, 64, 14, 14)
    there = [copy.deepcopy(model).to("cuda:1"), x.to("cuda:1"), weights.to("cuda:1")]
    assert_same_bits(step(*there, dtype), step(model, x, weights, dtype))
    assert torch.cuda.current_device() == 0
