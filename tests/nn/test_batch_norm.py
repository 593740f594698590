"""Batch norm inside fused modules decides, counts and averages as nn.BatchNorm2d does."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from support.parity import assert_buffers_equal, assert_buffers_match, randomise_batch_norms, stock_twin
from torch import nn

from fused_resnet.nn import BasicBlock, BNAddAct2d, ConvBNAct2d

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[[], nn.Module]
MODULES = {
    "conv_bn_act": lambda: ConvBNAct2d(6, 6),
    "bn_add_act": lambda: BNAddAct2d(6),
    "block": lambda: BasicBlock(6, 6),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))


def configure(model: nn.Module, **options: object) -> nn.Module:
    """``model`` with batch norms built with ``options``."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, nn.BatchNorm2d(module.num_features, **options))
    return randomise_batch_norms(model)


@every_module
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 0.9},
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"eps": 0.5},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "default",
)
@pytest.mark.parametrize("modes", ["ttt", "te", "et"])
def test_options(make: Make, options: dict, modes: str, target: str) -> None:
    ours = configure(make(), **options)
    stock = stock_twin(ours)
    for mode in modes:
        ours.train(mode == "t")
        stock.train(mode == "t")
        x = 3 * torch.randn(4, 6, 5, 5) + 1
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-5, atol=1e-5)
        assert_buffers_match(ours, stock)
    assert list(ours.state_dict()) == list(stock.state_dict())


@every_module
def test_tracking_switched_off_on_the_instance(make: Make) -> None:
    ours = randomise_batch_norms(make())
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
    before = copy.deepcopy(ours)
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(ours(x), stock_twin(before)(x))
    assert_buffers_equal(ours, before)


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_of_the_model(make: Make, dtype: torch.dtype) -> None:
    ours = randomise_batch_norms(make()).to(dtype)
    stock = stock_twin(ours)
    x = torch.randn(4, 6, 5, 5, dtype=dtype)
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-10, "atol": 1e-10}
    out, want = ours(x), stock(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, **tolerance)
    for (key, a), b in zip(ours.state_dict().items(), stock.state_dict().values(), strict=True):
        assert a.dtype == b.dtype, key
        torch.testing.assert_close(a, b, **tolerance)


@every_module
def test_one_value_per_channel_raises_as_stock_and_leaves_buffers(make: Make) -> None:
    ours = randomise_batch_norms(make())
    before = copy.deepcopy(ours)
    x = torch.randn(1, 6, 1, 1)
    with pytest.raises(ValueError) as stock_error:
        stock_twin(ours)(x)
    with pytest.raises(ValueError) as error:
        ours(x)
    assert str(error.value) == str(stock_error.value)
    assert_buffers_equal(ours, before)
    ours.eval()(x)


def test_an_error_behind_the_first_batch_norm_leaves_its_buffers() -> None:
    block = BasicBlock(6, 6, stride=2, downsample=nn.Identity())  # the shortcut does not fit
    before = copy.deepcopy(block)
    with pytest.raises(ValueError, match=r"residual: expected shape \[2, 6, 4, 4\], got \[2, 6, 8, 8\]"):
        block(torch.randn(2, 6, 8, 8))
    assert_buffers_equal(block, before)


@every_module
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch_as_stock(make: Make, training: bool, target: str) -> None:
    ours = randomise_batch_norms(make()).train(training)
    stock = stock_twin(ours)
    for module in (ours, stock):
        x = torch.randn(0, 6, 5, 5, requires_grad=True)
        out = module(x)
        assert out.shape == (0, 6, 5, 5)
        out.sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape
    assert_buffers_equal(ours, stock)
    for (name, a), b in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


@every_module
def test_an_evaluation_survives_the_training_step_after_it(make: Make) -> None:
    """Running statistics that a backward still needs may move before it."""
    ours = randomise_batch_norms(make())
    stock = stock_twin(ours).eval()
    x = torch.randn(4, 6, 5, 5)
    want = torch.autograd.grad(stock(x).sum(), [*stock.parameters()])
    evaluated = ours.eval()(x)
    ours.train()(x)
    got = torch.autograd.grad(evaluated.sum(), [*ours.parameters()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_batch_norm_used_twice_counts_twice() -> None:
    ours = BasicBlock(6, 6)
    ours.bn2 = ours.bn1
    stock = stock_twin(ours)
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(ours(x), stock(x))
    assert_buffers_match(ours, stock)
    assert ours.bn1.num_batches_tracked == 2
