"""A block in training as one node: the numbers of the ops, nothing stale, and ops where anybody could see them."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from support.oracle import assert_close_three_way, relative_error
from support.parity import randomise_batch_norms, stock_twin
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fused_resnet
from fused_resnet.nn import BasicBlock, Bottleneck, trained

_cpu = pytest.importorskip("fused_resnet._cpu", reason="the native module is not built")

C = 32


def projection(c: int, k: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "basic": lambda: BasicBlock(C, C),
    "basic_projection": lambda: BasicBlock(C, 40, 2, projection(C, 40, 2)),
    "bottleneck": lambda: Bottleneck(C, C // 4),
    "bottleneck_projection": lambda: Bottleneck(C, 12, 2, projection(C, 48, 2)),
    "grouped": lambda: Bottleneck(C, C // 4, groups=4, base_width=64),
    "wide_channels": lambda: Bottleneck(512, 17, 1, projection(512, 68, 1)),  # rows that alias in the caches
}


def block(name: str = "bottleneck", activation: nn.Module | None = None) -> nn.Module:
    made = randomise_batch_norms(BLOCKS[name]()).train()
    if activation is not None:
        made.relu = activation
    return made


def image(model: nn.Module, n: int = 3, h: int = 9, w: int = 8) -> Tensor:
    weight = model.conv1.weight
    x = torch.randn(n, weight.shape[1], h, w, dtype=weight.dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


class Functions(TorchFunctionMode):
    """Looks at every function, and so has blocks run their ops."""

    def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        return function(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    def __torch_dispatch__(self, op: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        return op(*args, **(kwargs or {}))


def is_one_node(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "ResidualBlockFunctionBackward"


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Everything that a forward and a backward make."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return {"out": out, "x": x.grad, **gradients, **buffers}


def assert_same(ours: dict[str, Tensor], ops: dict[str, Tensor]) -> None:
    """The output to the bit; the tail's gradient is scaled where it is read, instead of rounded in between."""
    assert torch.equal(ours["out"], ops["out"])
    for name, want in ops.items():
        assert ours[name].dtype == want.dtype and ours[name].stride() == want.stride()
        allowed = 1e-13 if want.dtype == torch.float64 else 1e-5
        assert relative_error(ours[name], want) <= allowed, name


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
    "statistics with gaps": lambda m: setattr(m.bn1, "running_mean", torch.randn(2 * C // 4)[::2]),
}
AS_ONE_NODE = {
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


OBSERVERS: dict[str, Callable[[], AbstractContextManager]] = {
    "nobody": nullcontext,
    "function mode": Functions,
    "dispatch mode": Ops,
    "profiler": torch.profiler.profile,
    "autograd profiler": torch.autograd.profiler.profile,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("observer", OBSERVERS)
def test_whoever_looks_sees_ops(observer: str) -> None:
    model = block()
    x = image(model)
    model(x)
    with OBSERVERS[observer]():
        assert is_one_node(model(x)) == (observer == "nobody")


def test_compiled_and_frozen_models_are_served_as_before() -> None:
    torch._dynamo.reset()
    model = block()
    x = image(model)
    want = step(copy.deepcopy(model), x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want["out"])
    assert not is_one_node(model(x.detach()))  # no gradient for x
    with torch.no_grad():
        assert model(x).grad_fn is None


def test_errors_are_those_of_the_ops_and_move_nothing() -> None:
    model = block()
    model(image(model))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="input channels, got x with 31"):
        model(torch.randn(1, C - 1, 8, 8, requires_grad=True))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(torch.randn(1, C, 1, 1, requires_grad=True))
    with pytest.raises(TypeError, match=r"expected torch.float64, the type of x"):
        model(torch.randn(1, C, 8, 8, dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="residual: expected shape"):
        Bottleneck(C, C // 4, stride=2)(torch.randn(1, C, 8, 8, requires_grad=True))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
def test_a_vector_of_another_length_is_an_error(name: str) -> None:
    model = block()
    x = image(model)
    model(x)
    vector = getattr(model.bn2, name)
    vector.data = vector.data[:3]  # at the same address
    with pytest.raises((ValueError, RuntimeError), match=r"expected shape \[8\]|size"):
        model(x)


def test_parameters_may_move_between_forward_and_backward() -> None:
    """Backward reads them where they are then, as the ops do."""
    model = block("bottleneck_projection")
    x = image(model)
    want = torch.autograd.grad(copy.deepcopy(model)(x).square().sum(), x)
    out = model(x)
    for parameter in model.parameters():
        kept = parameter.data.clone()
        parameter.data.fill_(float("nan"))
        parameter.data = kept
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], want[0])


def test_backward_raises_for_what_has_changed_or_is_gone() -> None:
    model = block()
    x = image(model)
    out = model(x)
    with torch.no_grad():
        model.conv2.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    out = model(x)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        out.sum().backward()
    (g_x,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        g_x.sum().backward()


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    model = block("basic_projection")
    x = image(model)
    out = model(x)
    first = torch.autograd.grad(out.square().sum(), [x, *model.parameters()], retain_graph=True)
    model(image(model, 2, 5, 5))  # another shape in between
    again = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    assert all(map(torch.equal, first, again))


def test_keeps_the_bytes_that_the_ops_keep() -> None:
    def kept(model: nn.Module, x: Tensor) -> int:
        sizes = {}
        parameters = {p.data_ptr() for p in model.parameters()}

        def pack(t: Tensor) -> Tensor:
            if t.data_ptr() not in parameters:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        del out
        return sum(sizes.values())

    model = block("bottleneck_projection")
    x = image(model, 4, 32, 32)
    ours = kept(model, x)
    with Functions():
        assert ours <= kept(model, x)


def test_checkpoints_and_saved_tensors_hooks() -> None:
    model = block()
    x, twin = image(model), copy.deepcopy(model)
    want = torch.autograd.grad(twin(x).square().sum(), [x, *twin.parameters()])
    model.to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.contiguous()):
        out = model(x)
    assert is_one_node(out)
    got = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    assert all(map(torch.equal, got, want))
    out = checkpoint(model, x, use_reentrant=False)
    got = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    assert all(map(torch.equal, got, want))


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
