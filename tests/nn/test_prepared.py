"""Prepared inference: the same results as the ops, nothing stale, and ops where anybody could see them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from support.observers import OBSERVERS
from support.oracle import assert_close_three_way, relative_error
from support.parity import randomise_batch_norms, stock_twin
from torch import Tensor, nn

import fused_resnet
from fused_resnet import ops, set_float32_conv_precision
from fused_resnet.nn import BasicBlock, Bottleneck, ConvBNAct2d, prepared

pytest.importorskip("fused_resnet._cpu", reason="the native module is not built")

C = 32


def projection() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C, C, 1, 2, bias=True), nn.BatchNorm2d(C))


class AveragedShortcut(nn.Sequential):
    """No chain of convolution and norm alone: computed beside the block."""

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(2), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: ConvBNAct2d(C, 48, bias=True, activation=nn.SiLU()),
    "basic": lambda: BasicBlock(C, C),
    "basic_projection": lambda: BasicBlock(C, C, 2, projection()),
    "basic_averaged": lambda: BasicBlock(C, C, 2, AveragedShortcut()),
    "bottleneck": lambda: Bottleneck(C, C // 4),
    "bottleneck_projection": lambda: Bottleneck(C, C // 4, 2, projection()),
    "chain": lambda: nn.Sequential(nn.Conv2d(C, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 7, 1)),
}


def module(name: str = "bottleneck") -> nn.Module:
    made = randomise_batch_norms(MODULES[name]()).eval()
    fused_resnet.fuse(made)
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of layers of each prepared call."""
    seen: list[int] = []
    run = prepared.run

    def spy(owner: nn.Module, layers: list, *given: Tensor) -> Tensor | None:
        out = run(owner, layers, *given)
        if out is not None:
            seen.append(len(layers))
        return out

    monkeypatch.setattr(prepared, "run", spy)
    return seen


@pytest.mark.parametrize("size", [9, 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_matches_stock(name: str, dtype: torch.dtype, size: int, calls: list[int]) -> None:
    if name == "basic_averaged" and size == 1:
        size = 8
    model = module(name).to(dtype)
    for batch in (1, 3, 1):
        x = torch.randn(batch, C, size - size % 2 if name == "basic_averaged" else size, 8, dtype=dtype)
        with torch.no_grad():
            ours, stock = model(x), stock_twin(model)(x)
            reference = stock_twin(model).double()(x.double())
            again = model(x)
        assert ours.dtype == dtype and ours.is_contiguous(memory_format=torch.channels_last)
        assert_close_three_way(ours, stock, reference, atol=2e-6 if dtype == torch.float32 else 1e-12)
        assert torch.equal(ours, again) and ours.data_ptr() != again.data_ptr()
    layers = {"basic": 2, "basic_projection": 3, "bottleneck": 3, "bottleneck_projection": 4}.get(name)
    assert set(calls) == {layers or 1}


def test_empty_batches_and_errors_are_those_of_the_ops() -> None:
    model = module()
    with torch.no_grad():
        assert model(torch.randn(0, C, 8, 8)).shape == (0, C, 8, 8)
        model(torch.randn(1, C, 8, 8))
        with pytest.raises(ValueError, match="input channels, got x with 31"):
            model(torch.randn(1, C - 1, 8, 8))
        with pytest.raises(TypeError, match=r"expected torch.float64, the type of x"):
            model(torch.randn(1, C, 8, 8, dtype=torch.float64))
        model.bn2.running_var = torch.ones(3)
        with pytest.raises(ValueError, match=r"bn.var: expected shape \[8\]"):
            model(torch.randn(1, C, 8, 8))


def replace_in_place(model: nn.Module) -> None:
    model.load_state_dict({k: v + 0.25 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def replace_tensors(model: nn.Module) -> None:
    state = {k: v + 0.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def prune(model: nn.Module) -> None:
    """Half of the inner channels, by views of the same memory."""
    half = model.conv2.weight.shape[0] // 2
    model.conv2.weight.data = model.conv2.weight.data[:half]
    model.conv3.weight.data = model.conv3.weight.data[:, :half]
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = getattr(model.bn2, name)
        vector.data = vector.data[:half]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "filter in place": lambda m: m.conv2.weight.mul_(2),
    "filter by data in place": lambda m: m.conv2.weight.data.mul_(2),
    "filter by data": lambda m: setattr(m.conv2.weight, "data", m.conv2.weight.data * 2),
    "filter replaced": lambda m: setattr(m.conv2, "weight", nn.Parameter(m.conv2.weight * 2)),
    "norm in place": lambda m: m.bn2.weight.add_(1),
    "norm by data in place": lambda m: m.bn2.bias.data.add_(1),
    "norm by data": lambda m: setattr(m.bn2.weight, "data", m.bn2.weight.data + 1),
    "statistics in place": lambda m: m.bn1.running_mean.add_(1),
    "statistics replaced": lambda m: setattr(m.bn1, "running_var", m.bn1.running_var * 3),
    "statistics reset": lambda m: m.bn3.reset_running_stats(),
    "eps": lambda m: setattr(m.bn3, "eps", 0.5),
    "norm without affine": lambda m: m.bn3.register_parameter("bias", None),
    "norm trains": lambda m: m.bn2.train(),
    "geometry": lambda m: (setattr(m.conv2, "dilation", (2, 2)), setattr(m.conv2, "padding", (2, 2))),
    "module replaced": lambda m: setattr(m, "conv1", nn.Conv2d(C, C // 4, 1, bias=True)),
    "activation replaced": lambda m: setattr(m, "relu", nn.LeakyReLU(0.3)),
    "activation's slope": lambda m: setattr(m.relu, "negative_slope", 0.7),
    "state dict": replace_in_place,
    "state dict assigned": replace_tensors,
    "pruned": prune,
    "double": lambda m: m.double(),
    "memory format": lambda m: m.to(memory_format=torch.channels_last),
    "a hook": lambda m: m.bn2.register_forward_hook(lambda module, args, output: output + 1),
    "a hook on all modules": lambda m: nn.modules.module.register_module_forward_hook(lambda m, a, out: out * 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_stale(change: str) -> None:
    model, x = module(), torch.randn(2, C, 8, 8)
    if "slope" in change:
        model.relu = nn.LeakyReLU(0.1)
    with torch.no_grad():
        before = model(x)
        undo = CHANGES[change](model)
        try:
            x = x.to(model.conv1.weight.dtype)
            twin = copy.deepcopy(model)
            after, anew, stock = model(x), twin(x), stock_twin(model)(x)
        finally:
            if hasattr(undo, "remove"):
                undo.remove()
    assert torch.equal(after, anew)
    torch.testing.assert_close(after, stock, rtol=1e-4, atol=1e-4)
    assert change == "memory format" or after.dtype != before.dtype or not torch.allclose(after, before, atol=1e-3)


def test_settings_are_seen(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    """Each setting gives the bits that a model prepared under it gives."""
    model, x = module("basic"), torch.randn(2, C, 14, 14)
    threads = torch.get_num_threads()

    def both() -> Tensor:
        ours, anew = model(x), copy.deepcopy(model)(x)
        assert torch.equal(ours, anew)
        return ours

    with torch.no_grad():
        set_float32_conv_precision("high")
        winograd = both()
        set_float32_conv_precision("highest")
        direct = both()
        monkeypatch.setenv("FUSED_RESNET_CONV", "winograd_f2")
        winograd_f2 = both()
        monkeypatch.delenv("FUSED_RESNET_CONV")
        count = len(calls)
        with fused_resnet.use_backend("reference"):
            both()
        monkeypatch.setenv("FUSED_RESNET_BACKEND", "reference")
        both()
        assert len(calls) == count
        monkeypatch.delenv("FUSED_RESNET_BACKEND")
        torch.set_num_threads(1)
        try:
            assert torch.equal(both(), direct)
        finally:
            torch.set_num_threads(threads)
    assert len(calls) == count + 2
    assert not torch.equal(winograd, direct) and not torch.equal(winograd_f2, direct)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (fused_resnet.models.resnet18, 20),
    "resnet50": (fused_resnet.models.resnet50, 53),
    "resnet20": (fused_resnet.models.resnet20, 7),  # its stages two and three have shortcuts that are no convolution
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_call(name: str, calls: list[int]) -> None:
    make, layers = NETWORKS[name]
    model = randomise_batch_norms(make()).eval()
    x = torch.randn(2, 3, 40, 40)
    twin = stock_twin(model)
    with torch.no_grad():
        assert relative_error(model(x), twin(x)) < 1e-5
        assert (calls == [layers]) == (name != "resnet20")
        seen: list[Tensor] = []
        calls.clear()
        handle = model.layer2[1].register_forward_hook(lambda module, args, output: seen.append(output))
        assert relative_error(model(x), twin(x)) < 1e-5
        assert len(seen) == 1 and len(calls) > 1
        handle.remove()
        before = seen[0].clone()
        model(-x)
        assert torch.equal(seen[0], before)  # what a hook has seen is nobody's working memory


@pytest.mark.parametrize("observer", [*OBSERVERS, "gradients"])
def test_whoever_looks_sees_ops(observer: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = module().requires_grad_(False), torch.randn(1, C, 8, 8)
    seen = []
    op = ops.conv_bn_add_act
    monkeypatch.setattr(ops, "conv_bn_add_act", lambda *a, **k: seen.append(1) or op(*a, **k))
    with torch.no_grad():
        want = model(x)
        assert (calls, seen) == ([3], [])
        with (OBSERVERS | {"gradients": torch.enable_grad})[observer]():
            got = model(x)
    assert (calls, seen) == (([3, 3], []) if observer == "nobody" else ([3], [1, 1, 1]))
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)


def test_a_profile_lists_the_ops() -> None:
    model, x = module(), torch.randn(1, C, 8, 8)
    with torch.no_grad():
        model(x)
        with torch.profiler.profile() as profile:
            model(x)
    assert sum(event.name == "fused_resnet::conv_bn_add_act" for event in profile.events()) == 3


class Marked(Tensor):
    pass


def test_subclasses_transforms_and_traces_are_served_as_before(calls: list[int]) -> None:
    torch._dynamo.reset()  # all blocks share one forward, and the limit of recompilations is the process's
    model, x = module(), torch.randn(2, C, 8, 8)
    with torch.no_grad():
        want = model(x)
        calls.clear()
        assert type(model(x.as_subclass(Marked))) is Marked
        torch.testing.assert_close(torch.vmap(model)(x[:, None])[:, 0], want, rtol=1e-4, atol=1e-4)
        traced = torch.jit.trace(model, x, check_trace=False)
        assert calls == []
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
        exported = torch.export.export(model, (x,)).module()
    nodes = [str(node.target) for node in exported.graph.nodes]
    assert sum("fused_resnet.conv_bn_add_act" in node for node in nodes) == 3
    assert "fused_resnet::conv_bn_add_act" in str(traced.inlined_graph)


def test_a_gradient_is_taken_where_one_is_needed() -> None:
    model, x = module(), torch.randn(1, C, 8, 8)
    with torch.no_grad():
        want = model(x)
    out = model(x)
    out.sum().backward()
    assert model.conv1.weight.grad is not None
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_weights_without_a_version_are_packed_anew() -> None:
    with torch.inference_mode():
        model = module("conv")
        x = torch.randn(1, C, 8, 8)
        for _ in range(2):
            model.conv.weight[0, 0, 0, 1] += 1
            torch.testing.assert_close(model(x), stock_twin(model)(x), rtol=1e-4, atol=1e-4)


def test_what_is_prepared_dies_with_its_module() -> None:
    gc.collect()
    known = len(prepared._known)
    model = module()
    with torch.no_grad():
        model(torch.randn(1, C, 8, 8))
    assert len(prepared._known) == known + 1
    copy.deepcopy(model)
    assert len(prepared._known) == known + 1
    del model
    gc.collect()
    assert len(prepared._known) == known
