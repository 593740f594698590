"""Forwards that change a tensor between two calls, or read what may be another later: never a silent wrong number."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

import pytest
import torch
from support.oracle import relative_error
from support.parity import randomise_batch_norms
from torch import Tensor, nn

import fused_resnet

pytestmark = pytest.mark.usefixtures("one_thread")


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.act, self.inplace = nn.ReLU(), nn.ReLU(inplace=True)
        self.doubler, self.drop = Doubler(), nn.Dropout(0.5)


class Doubler(nn.Module):
    """A layer that writes into what it is given, and does not say so."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2.0)


def double(x: Tensor) -> Tensor:
    return torch.mul(x, 2.0, out=x)


def _multiplied(self: Base, x: Tensor) -> Tensor:
    y = self.bn1(x)
    x.mul_(2.0)
    return self.conv1(y) + x


def _inplace_shortcut(self: Base, x: Tensor) -> Tensor:
    y = self.act(self.bn1(x))
    short = self.inplace(x)
    return self.conv1(y) + short


def _inplace_by_position(self: Base, x: Tensor) -> Tensor:
    y = self.act(self.bn1(x))
    short = nn.functional.relu(x, True)
    return self.conv1(y) + short


def _out(self: Base, x: Tensor) -> Tensor:
    y = self.bn1(self.conv1(x))
    torch.mul(x, 2.0, out=x)
    return self.act(y + x)


def _layer_that_writes(self: Base, x: Tensor) -> Tensor:
    y = self.bn1(self.conv1(x))
    return self.act(y + self.doubler(x))


def _layer_that_writes_to_a_view(self: Base, x: Tensor) -> Tensor:
    y = self.bn1(self.conv1(x))
    return self.act(y + self.doubler(x.view(x.shape)))


def fused(forward: Callable[..., Tensor], **members: object) -> tuple[nn.Module, nn.Module]:
    """A fused module with this forward, and its stock twin."""
    torch.manual_seed(1)
    stock = randomise_batch_norms(type("Block", (Base,), {"forward": forward, **members})())
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert report.fused or report.partial or report.skipped
    return model, stock


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "forward",
    [_multiplied, _inplace_shortcut, _inplace_by_position, _out, _layer_that_writes, _layer_that_writes_to_a_view],
)
def test_what_is_overwritten_is_read_before(forward: Callable[..., Tensor], mode: str) -> None:
    model, stock = fused(forward)
    x = torch.randn(2, 8, 7, 7)
    with torch.no_grad():
        got, want = (m.train(mode == "train")(x.clone()) for m in (model, stock))
    assert relative_error(got, want) < 1e-6


CONFIG = types.ModuleType("config")
CONFIG.FLAG, CONFIG.Sizes = False, type("Sizes", (), {"scale": 1.0})


def _body(self: Base, x: Tensor) -> Tensor:
    return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))


def _reads_a_layer(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * (1.0 if self.drop.p == 0.5 else 2.0)


def _reads_momentum(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * (1.0 if self.bn1.momentum == 0.1 else 2.0)


def _reads_a_module(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * (2.0 if CONFIG.FLAG else 1.0)


def _reads_a_class(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * CONFIG.Sizes.scale


def _reads_its_class(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * self.k


def _reads_by_name(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * (2.0 if getattr(self, "flag") else 1.0)  # noqa: B009


def _set(path: str, value: object) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        *modules, name = path.split(".")
        setattr(model.get_submodule(".".join(modules)), name, value)

    return change


@pytest.mark.parametrize(
    ("forward", "change"),
    [
        (_reads_a_layer, _set("drop.p", 0.25)),
        (_reads_momentum, _set("bn1.momentum", 0.5)),
        (_reads_its_class, lambda model: setattr(getattr(type(model), "stock_class", type(model)), "k", 3.0)),
        (_reads_by_name, _set("flag", True)),
    ],
)
def test_what_a_forward_has_read_is_compared(forward: Callable[..., Tensor], change: Callable) -> None:
    model, stock = (m.eval() for m in fused(forward, k=1.0, flag=False))
    x = torch.randn(2, 8, 7, 7)
    assert relative_error(model(x), stock(x)) < 1e-6
    for m in (model, stock):
        change(m)
    torch.testing.assert_close(model(x), stock(x))


@pytest.mark.parametrize(("forward", "name", "value"), [(_reads_a_module, "FLAG", True), (_reads_a_class, "Sizes", 2)])
def test_what_it_has_read_of_other_modules_is_compared(
    forward: Callable[..., Tensor], name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stock = (m.eval() for m in fused(forward))
    x = torch.randn(2, 8, 7, 7)
    assert relative_error(model(x), stock(x)) < 1e-6
    if name == "Sizes":
        monkeypatch.setattr(CONFIG.Sizes, "scale", 2.0)
    else:
        monkeypatch.setattr(CONFIG, name, value)
    torch.testing.assert_close(model(x), stock(x))


def _reads_training_of_a_layer(self: Base, x: Tensor) -> Tensor:
    return _body(self, x) * (2.0 if self.bn1.training else 1.0)


def test_training_of_a_layer_is_not_traced() -> None:
    model, stock = fused(_reads_training_of_a_layer)
    (entry,) = fused_resnet.fuse(model).skipped
    assert entry.reason == "its forward reads whether a layer is in training"
    x = torch.randn(2, 8, 7, 7)
    for mode in (True, False):
        assert relative_error(model.train(mode)(x), stock.train(mode)(x)) < 1e-6
