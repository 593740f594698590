"""A block in training as one node: the numbers of the ops and of stock, nothing stale."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.blocks import BLOCKS, C, assert_same, block, image, is_one_node, step
from support.observers import Functions
from support.oracle import assert_close_three_way
from support.parity import randomise_batch_norms, stock_twin
from torch import Tensor, nn

import fused_resnet
from fused_resnet.nn import trained

_cpu = pytest.importorskip("fused_resnet._cpu", reason="the native module is not built")


@pytest.mark.parametrize("activation", [None, nn.LeakyReLU(0.1), nn.SiLU()], ids=["relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_computes_what_the_ops_compute(name: str, dtype: torch.dtype, activation: nn.Module | None) -> None:
    model = block(name, activation).to(dtype)
    twin = copy.deepcopy(model)
    for n, h, w in ((3, 9, 8), (3, 9, 8), (1, 14, 14), (5, 5, 1)):
        x = image(model, n, h, w)
        ours = step(model, x)
        with Functions():
            ops = step(twin, x)
        assert is_one_node(ours["out"]) and not is_one_node(ops["out"])
        assert_same(ours, ops)


@pytest.mark.parametrize("name", ["basic", "bottleneck_projection"])
def test_large_gradients_are_added_past_the_caches(name: str) -> None:
    """Tensors of more than 8 MiB are streamed to memory; the input's gradient is added to where it is written."""
    model = block(name)
    x, twin = image(model, 6, 112, 112), copy.deepcopy(model)
    ours = step(model, x)
    with Functions():
        ops = step(twin, x)
    assert is_one_node(ours["out"])
    assert_same(ours, ops)


@pytest.mark.parametrize("name", BLOCKS)
def test_matches_stock(name: str) -> None:
    model = block(name)
    x, stock, reference = image(model), stock_twin(model), stock_twin(model).double()
    ours, stock_results, want = step(model, x), step(stock, x), step(reference, x.double())
    assert is_one_node(ours["out"])
    for key in want:
        assert_close_three_way(ours[key], stock_results[key], want[key], atol=2e-5)


def nodes(out: Tensor) -> Iterator[str]:
    """The names of the nodes of its graph, each node once."""
    seen, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            yield type(node).__name__


@pytest.mark.parametrize("library", ["fused_resnet.models", "torchvision.models", "timm"])
def test_every_block_of_a_network_is_one_node(library: str) -> None:
    module = pytest.importorskip(library)
    model = module.create_model("resnet18") if library == "timm" else module.resnet18()
    fused_resnet.fuse(model)
    names = list(nodes(model.train()(torch.randn(2, 3, 64, 64))))
    assert names.count("ResidualBlockFunctionBackward") == 8
    assert not any("AddBackward" in name for name in names)


def replace_by_attribute(module: nn.Module, name: str, value: Tensor) -> None:
    delattr(module, name)
    setattr(module, name, value)


def frozen_parameter(model: nn.Module) -> None:
    model.conv2.weight.requires_grad_(False)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "nothing": lambda m: None,
    "filter in place": lambda m: m.conv2.weight.data.mul_(2),
    "filter by data": lambda m: setattr(m.conv2.weight, "data", m.conv2.weight.data * 2),
    "filter replaced": lambda m: setattr(m.conv2, "weight", nn.Parameter(m.conv2.weight * 2)),
    "norm in place": lambda m: m.bn2.weight.data.add_(1),
    "norm replaced": lambda m: setattr(m.bn2, "bias", nn.Parameter(m.bn2.bias + 1)),
    "statistics replaced": lambda m: setattr(m.bn1, "running_var", m.bn1.running_var * 3),
    "statistics reset": lambda m: m.bn3.reset_running_stats(),
    "eps": lambda m: setattr(m.bn3, "eps", 0.5),
    "momentum": lambda m: setattr(m.bn3, "momentum", 0.9),
    "geometry": lambda m: (setattr(m.conv2, "dilation", (2, 2)), setattr(m.conv2, "padding", (2, 2))),
    "geometry in place": lambda m: (setattr(m.conv2, "stride", [1, 1]), m.conv2.stride.__setitem__(0, 1)),
    "module replaced": lambda m: setattr(m, "conv1", nn.Conv2d(C, C // 4, 1, bias=False)),
    "activation replaced": lambda m: setattr(m, "relu", nn.LeakyReLU(0.3)),
    "activation's slope": lambda m: setattr(m.relu, "negative_slope", 0.7),
    "state dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "memory format": lambda m: m.to(memory_format=torch.channels_last),
    "double": lambda m: m.double(),
}

# What a block as one node does not have.
LEFT_TO_THE_OPS: dict[str, Callable[[nn.Module], object]] = {
    "a hook": lambda m: m.bn2.register_forward_hook(lambda module, args, output: output + 1),
    "a filter without gradient": frozen_parameter,
    "a norm in evaluation": lambda m: m.bn2.eval(),
    "a cumulative average": lambda m: setattr(m.bn2, "momentum", None),
    "a norm without bias": lambda m: m.bn3.register_parameter("bias", None),
    "a norm across processes": lambda m: setattr(m, "bn2", nn.SyncBatchNorm(C // 4)),
    "a convolution's bias": lambda m: setattr(m.conv2, "bias", nn.Parameter(torch.ones(C // 4))),
    "bfloat16": lambda m: m.bfloat16(),
    "statistics of another type": lambda m: setattr(m.bn1, "running_mean", m.bn1.running_mean.double()),
    "a norm at two places": lambda m: setattr(m, "bn2", m.bn1),
    "a momentum that is a tensor": lambda m: setattr(m.bn2, "momentum", torch.tensor(0.3)),
    "a bias that is no parameter": lambda m: replace_by_attribute(m.conv2, "bias", torch.ones(C // 4)),
    "a filter that is no parameter": lambda m: replace_by_attribute(m.conv2, "weight", m.conv2.weight.detach()),
    "statistics with gaps": lambda m: setattr(m.bn1, "running_mean", torch.randn(2 * C // 4)[::2]),
}
AS_ONE_NODE = {
    "statistics that are no buffer": lambda m: replace_by_attribute(m.bn2, "running_mean", torch.ones(C // 4)),
    "no running statistics": lambda m: setattr(m, "bn2", nn.BatchNorm2d(C // 4, track_running_stats=False)),
    "running statistics at rest": lambda m: setattr(m.bn2, "track_running_stats", False),
}


@pytest.mark.parametrize("change", [*CHANGES, *AS_ONE_NODE, *LEFT_TO_THE_OPS])
def test_nothing_is_stale(change: str) -> None:
    model = block(activation=nn.LeakyReLU(0.1))
    step(model, image(model))
    (CHANGES | AS_ONE_NODE | LEFT_TO_THE_OPS)[change](model)
    frozen = change == "a filter without gradient"
    twin, x = copy.deepcopy(model), image(model)
    for _ in range(2):
        ours = step(model, x)
        with Functions():
            ops = step(twin, x)
        assert is_one_node(ours["out"]) == (change not in LEFT_TO_THE_OPS)
        if frozen:
            assert ours.pop("conv2.weight") is ops.pop("conv2.weight") is None
        assert_same(ours, ops)


def test_settings_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = block("basic")
    x, threads, isa = image(model, 2, 14, 14), torch.get_num_threads(), _cpu.isa()

    def both() -> Tensor:
        twin = copy.deepcopy(model)
        ours = step(model, x)
        with Functions():
            assert_same(ours, step(twin, x))
        return ours["conv1.weight"]

    step(model, x)
    fused_resnet.set_float32_conv_precision("high")
    winograd = both()
    fused_resnet.set_float32_conv_precision("highest")
    direct = both()
    monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_f2")
    winograd_f2 = both()
    monkeypatch.delenv("FUSED_RESNET_CONV")
    with fused_resnet.use_backend("reference"):
        assert not is_one_node(model(x))
    torch.set_num_threads(1)
    try:
        both()
    finally:
        torch.set_num_threads(threads)
    _cpu.set_isa("baseline")
    try:
        both()
    finally:
        _cpu.set_isa(isa)
    assert not torch.equal(winograd, direct) and not torch.equal(winograd_f2, direct)


class ActivatedShortcut(nn.Module):
    """What is added is activated itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, C, 3, 1, 1, bias=False), nn.BatchNorm2d(C)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, 1, 1, bias=False), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + a)


class OneConvolution(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, C, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(x)) + x)


class Sequence(nn.Module):
    """Without a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, 20, 3, 2, 1, bias=False), nn.BatchNorm2d(20)
        self.conv2, self.bn2 = nn.Conv2d(20, 17, 1, bias=False), nn.BatchNorm2d(17)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


TRACED: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "activated shortcut": (ActivatedShortcut, False),
    "one 1x1": (lambda: OneConvolution(1), True),
    "one 3x3": (lambda: OneConvolution(3), True),
    "sequence": (Sequence, True),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_forwards(name: str) -> None:
    make, as_one_node = TRACED[name]
    stock = randomise_batch_norms(make()).train()
    model, reference = copy.deepcopy(stock), copy.deepcopy(stock).double()
    fused_resnet.fuse(model)
    x = image(model, 3, 20, 17)
    ours, theirs, want = step(model, x), step(stock, x), step(reference, x.double())
    assert is_one_node(ours["out"]) == as_one_node
    for key in want:
        assert_close_three_way(ours[key], theirs[key], want[key], atol=2e-5)


def test_threads_train_blocks_at_once() -> None:
    models = [block(name) for name in ("basic", "bottleneck", "basic_projection")]
    images = [image(model, 2, 20, 20) for model in models]
    twins = [copy.deepcopy(model) for model in models]
    want = [step(twin, x) for twin, x in zip(twins, images, strict=True)]
    got: list[Any] = [None] * len(models)

    def train(i: int) -> None:
        got[i] = step(models[i], images[i])

    threads = [threading.Thread(target=train, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(got, want, strict=True):
        assert_same(ours, theirs)


def test_what_is_remembered_dies_with_its_module() -> None:
    gc.collect()
    known = len(trained._known)
    model = block()
    model(image(model))
    assert len(trained._known) == known + 1
    del model
    gc.collect()
    assert len(trained._known) == known
