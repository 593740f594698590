"""A block in training as one node of the graph: whoever looks sees ops, and backward is right or an error."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from support.blocks import C, block, image, is_one_node, step
from support.observers import OBSERVERS
from support.oracle import relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fused_resnet.nn import Bottleneck

pytest.importorskip("fused_resnet._cpu", reason="the native module is not built")


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
    model.double()
    with pytest.raises(RuntimeError, match=r"expected .* in torch.float32 on cpu as in its forward, got"):
        out.sum().backward()
    model.float()
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
    model = block("bottleneck_projection")
    x = image(model, 4, 32, 32)
    parameters = {p.data_ptr() for p in model.parameters()}
    ops: dict[int, int] = {}

    def note(kept: dict[int, int], t: Tensor) -> Tensor:
        if t.data_ptr() not in parameters:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(partial(note, ops), lambda t: t):
        kept_alive = model(x)
    assert not is_one_node(kept_alive)  # a hook looks
    ours: dict[int, int] = {}
    out = model(x)
    for tensor in out.grad_fn.saved_tensors:
        note(ours, tensor)
    assert is_one_node(out) and 0 < sum(ours.values()) <= sum(ops.values())


@pytest.mark.parametrize("looks", ["forward", "backward", "never"])
def test_checkpoints(looks: str) -> None:
    """Forward and its repetition keep the same tensors, whoever looks at one of them."""
    model = block()
    x, twin = image(model), copy.deepcopy(model)
    want = torch.autograd.grad(twin(x).square().sum(), [x, *twin.parameters()])
    with torch.profiler.profile() if looks == "forward" else nullcontext():
        out = checkpoint(model, x, use_reentrant=False)
    with torch.profiler.profile() if looks == "backward" else nullcontext():
        got = torch.autograd.grad(out.square().sum(), [x, *model.parameters()])
    assert all(relative_error(g, w) < 1e-5 for g, w in zip(got, want, strict=True))


def test_backward_shows_its_ops_to_whoever_looks() -> None:
    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
            seen.append(str(op))
            return op(*args, **(kwargs or {}))

    for name in ("bottleneck", "bottleneck_projection", "basic"):
        model = block(name)
        x, variables = image(model), [*model.parameters()]
        want = torch.autograd.grad(model(x).square().sum(), [x, *variables])
        out = model(x)
        assert is_one_node(out)
        seen.clear()
        with Names():
            got = torch.autograd.grad(out.square().sum(), [x, *variables])
        convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        assert seen.count("fused_resnet.bn_act_conv_backward.default") == convolutions
        assert seen.count("fused_resnet.bn_add_act_backward.default") == 1
        assert all(relative_error(g, w) < 1e-5 for g, w in zip(got, want, strict=True))


def test_batched_gradients() -> None:
    model = block("basic")
    x = image(model)
    out = model(x)
    g_outs = torch.randn(3, *out.shape)
    (batched,) = torch.autograd.grad(out, [x], g_outs, is_grads_batched=True, retain_graph=True)
    for g_out, g_x in zip(g_outs, batched, strict=True):
        assert relative_error(g_x, torch.autograd.grad(out, [x], g_out, retain_graph=True)[0]) < 1e-5


def test_negated_views() -> None:
    """They share memory with what they negate."""
    model = block()
    x = image(model)
    out = model(x)
    g_out = torch.randn_like(out)
    want = torch.autograd.grad(out, x, -g_out, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(out, x, torch._neg_view(g_out))[0], want)
    negated = torch._neg_view(x.detach()).requires_grad_()
    assert relative_error(model(negated), model((-x.detach()).requires_grad_())) < 1e-6
    with torch.no_grad():
        model.eval()
        assert relative_error(model(negated), model(-x)) < 1e-6
