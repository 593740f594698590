"""Blocks and layers against their stock twins: values, every gradient, running statistics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.oracle import relative_error
from support.parity import assert_parity, randomise_batch_norms, results, stock_twin, weighted_sum
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_resnet import nn as fused_nn
from fused_resnet.nn import BasicBlock, BNAddAct2d, Bottleneck, ConvBNAct2d, reference

pytestmark = pytest.mark.usefixtures("one_thread")


def projection(inplanes: int, outplanes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))


def pooled_projection(inplanes: int, outplanes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(stride), *projection(inplanes, outplanes, 1))


# At least 16 channels: stock's gradient of a strided 1x1 convolution of fewer crashes in channels_last (PyTorch 2.14).
BLOCKS = {
    "basic": lambda: BasicBlock(16, 16),
    "basic_projection": lambda: BasicBlock(16, 20, 2, projection(16, 20, 2)),
    "basic_pooled_projection": lambda: BasicBlock(16, 20, 2, pooled_projection(16, 20, 2)),
    "basic_zero_pad": lambda: BasicBlock(16, 20, 2, reference.ZeroPadShortcut(4, 2)),
    "bottleneck": lambda: Bottleneck(16, 4),
    "bottleneck_projection": lambda: Bottleneck(16, 5, 2, projection(16, 20, 2)),
    "bottleneck_dilated": lambda: Bottleneck(16, 4, dilation=2),
    "bottleneck_grouped": lambda: Bottleneck(16, 4, groups=2, base_width=64),
    "conv_bn_act": lambda: ConvBNAct2d(16, 10, 3, stride=2),
    "conv_bn_act_bias": lambda: ConvBNAct2d(16, 10, 1, bias=True),
    "depthwise": lambda: ConvBNAct2d(16, 16, 3, groups=16, dilation=2),
    "bn_add_act": lambda: BNAddAct2d(16),
}
ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Identity()]
every_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=list(BLOCKS))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 16, 10, 10)


@every_block
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_parity(make: Any, mode: str, x: Tensor, target: str) -> None:
    model = randomise_batch_norms(make()).train(mode == "train")
    assert_parity(model, weighted_sum(x))


@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda act: type(act).__name__)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["bottleneck_projection", "conv_bn_act", "bn_add_act"])
def test_activations(name: str, mode: str, act: nn.Module, x: Tensor, target: str) -> None:
    model = randomise_batch_norms(BLOCKS[name]()).train(mode == "train")
    setattr(model, "relu" if hasattr(model, "relu") else "act", act)
    assert_parity(model, weighted_sum(x))
    assert model.unfusable() is None


def test_tail_with_residual(x: Tensor, target: str) -> None:
    model = randomise_batch_norms(BNAddAct2d(16))
    residual = torch.randn_like(x)

    class WithResidual(nn.Module):
        def __init__(self, tail: nn.Module) -> None:
            super().__init__()
            self.tail = tail

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(x, residual.to(x.dtype))

    assert_parity(WithResidual(model), weighted_sum(x))


@every_block
def test_frozen_batch_norms_in_training(make: Any, x: Tensor) -> None:
    """The usual fine-tuning: batch norms in evaluation and without gradients, the rest trains."""
    model = randomise_batch_norms(make()).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    before = copy.deepcopy(model)
    assert_parity(model, weighted_sum(x))
    for a, b in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", ["conv1", "bn1", "conv2.weight", "bn2.bias", "downsample", ""])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_any_subset_without_gradients(frozen: str, mode: str, x: Tensor) -> None:
    model = randomise_batch_norms(BLOCKS["basic_projection"]()).train(mode == "train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))

    def step(model: nn.Module) -> dict[str, Tensor]:
        output = model(x.to(next(model.parameters()).dtype))
        if output.requires_grad:
            output.square().sum().backward()
        return results(model, {"output": output})

    assert_parity(model, step)


@every_block
def test_float64_is_exact(make: Any, x: Tensor, target: str) -> None:
    model = randomise_batch_norms(make()).double()
    twin = stock_twin(model)
    step = weighted_sum(x.double())
    ours, stock = step(model), step(twin)
    for name, want in stock.items():
        assert (ours[name] - want).double().norm() <= 1e-12 * (want.double().norm() + 1), name  # some are zeros


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
def test_layout_of_the_input(layout: str) -> None:
    model = randomise_batch_norms(Bottleneck(16, 4))
    x = {
        "contiguous": torch.randn(2, 16, 6, 6),
        "channels_last": torch.randn(2, 16, 6, 6).to(memory_format=torch.channels_last),
        "sliced": torch.randn(4, 32, 12, 6)[1:3, ::2, ::2],
        "expanded": torch.randn(1, 16, 1, 6).expand(2, 16, 6, 6),
    }[layout]
    twin = stock_twin(model)
    out = model(x)
    torch.testing.assert_close(out, twin(x), rtol=1e-4, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["basic", "bottleneck_projection", "conv_bn_act"])
def test_autocast(name: str, mode: str, x: Tensor, target: str) -> None:
    """A float32 block input meets a bfloat16 branch: the result has the type, and the accuracy, of stock's."""
    model = randomise_batch_norms(BLOCKS[name]()).train(mode == "train")
    twin, exact = stock_twin(model), stock_twin(model).double()

    def run(model: nn.Module, enabled: bool) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(x if enabled else x.double())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert model.eval()(x if enabled else x.double()).dtype == output.dtype
        output.float().square().sum().backward()
        return output, [p.grad for p in model.parameters()]

    (ours, our_grads), (stock, stock_grads), (want, want_grads) = run(model, True), run(twin, True), run(exact, False)
    assert ours.dtype == stock.dtype == torch.bfloat16
    assert relative_error(ours, want) <= 2 * relative_error(stock, want)
    for (key, parameter), a, b, w in zip(model.named_parameters(), our_grads, stock_grads, want_grads, strict=True):
        assert a.dtype == parameter.dtype == torch.float32
        assert relative_error(a, w) <= 2 * relative_error(b, w) + 1e-2, key


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint_updates_running_statistics_as_often_as_stock(use_reentrant: bool, x: Tensor) -> None:
    model = randomise_batch_norms(BLOCKS["bottleneck_projection"]())
    stock = stock_twin(model)
    grads = []
    for module in (model, stock):
        leaf = x.clone().requires_grad_()
        checkpoint(module, leaf, use_reentrant=use_reentrant).square().sum().backward()
        grads.append([leaf.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*grads, strict=True):
        assert relative_error(a, b) < 1e-4
    assert model.bn1.num_batches_tracked == stock.bn1.num_batches_tracked == 2
    for a, b in zip(model.buffers(), stock.buffers(), strict=True):
        assert relative_error(a, b) <= 1e-6


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes of the distinct activations that the forward of ``model`` keeps for its backward."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()} | {x.untyped_storage().data_ptr()}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.dim() == 4 and t.untyped_storage().data_ptr() not in own:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model(x)
    assert output.requires_grad
    return sum(saved.values())


def test_a_block_keeps_one_tensor_for_each_convolution() -> None:
    model = Bottleneck(64, 16)
    x = torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)
    raw = (16 + 16 + 64) * 2 * 8 * 8 * 4
    assert saved_bytes(model, x) == raw
    assert saved_bytes(stock_twin(model), x) >= 1.9 * raw


def test_inference_keeps_nothing_and_defers_nothing() -> None:
    layer = ConvBNAct2d(8, 8).eval()
    with torch.no_grad():
        value = fused_nn.conv_bn_act(torch.randn(1, 8, 4, 4), layer.conv, layer.bn, layer.act)
    assert isinstance(value, Tensor)
    deferred = fused_nn.conv_bn_act(torch.randn(1, 8, 4, 4), layer.conv, layer.bn, layer.act)
    assert isinstance(deferred, fused_nn.Deferred)


def test_deferred_moves_running_statistics_when_it_is_read() -> None:
    layer = ConvBNAct2d(8, 8)
    deferred = fused_nn.conv_bn_act(torch.randn(2, 8, 4, 4), layer.conv, layer.bn, layer.act)
    assert layer.bn.num_batches_tracked == 0
    fused_nn.materialise(deferred)
    assert layer.bn.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(8, 4, 4), ValueError, r"x: expected 4 dimensions \[N, C, H, W\], got 3"),
        (torch.randn(2, 7, 4, 4), ValueError, "8 input channels, got x with 7"),
        (torch.randn(2, 8, 4, 4, dtype=torch.float64), TypeError, "weight: expected torch.float64"),
        (torch.ones(2, 8, 4, 4, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.randn(2, 8, 4, 4, device="meta"), ValueError, "weight: expected device meta"),
    ],
    ids=["rank", "channels", "dtype", "integers", "device"],
)
@pytest.mark.parametrize("make", [lambda: BasicBlock(8, 8), lambda: ConvBNAct2d(8, 8)], ids=["block", "layer"])
def test_bad_input_gets_one_clear_error_and_leaves_buffers(make: Any, x: Tensor, error: type, message: str) -> None:
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=message):
        model(x)
    for a, b in zip(model.buffers(), before.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_kernel_larger_than_the_padded_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel within the padded input \[3, 3\], got \[5, 5\]"):
        ConvBNAct2d(8, 8, 5, padding=0)(torch.randn(2, 8, 3, 3))
    with pytest.raises(ValueError, match="residual: expected shape"):
        BNAddAct2d(8)(torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 4))


@every_block
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_meta_device(make: Any, mode: str) -> None:
    model = make().to("meta").train(mode == "train")
    x = torch.empty(3, 16, 10, 10, device="meta")
    assert model(x).shape == stock_twin(model)(x).shape
    with torch.no_grad():
        assert model(x).shape == stock_twin(model)(x).shape


def test_a_function_transform_runs_the_stock_forward() -> None:
    model = randomise_batch_norms(BasicBlock(8, 8)).eval()
    x = torch.randn(3, 8, 5, 5)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None],)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        assert relative_error(per_sample[name].sum(0), parameter.grad) < 1e-5


def test_double_backward_raises() -> None:
    model = BasicBlock(8, 8)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()
