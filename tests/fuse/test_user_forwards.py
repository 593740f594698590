"""Forwards that a user may write: sums of another shape or type, views, and what a trace does not see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.parity import assert_parity, randomise_batch_norms, weighted_sum
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_resnet

pytestmark = pytest.mark.usefixtures("one_thread")


class Base(nn.Module):
    """Layers for the blocks of these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.seen: list[Any] = []

    def head(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))


class AddsTheMean(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.head(x))) + x.mean((2, 3), keepdim=True))


class AddsToTheMean(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.head(x).mean((2, 3), keepdim=True))) + x)


class AddsOneImage(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.head(x)))
        y += x[0]
        return F.relu(y)


class AddsANumber(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.head(x))) + x.shape[0])


class AddsAnotherType(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.head(x))) + x.to(torch.float16))


class Views(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        return y.view(y.size(0), -1)


def pair(block: type[Base]) -> tuple[nn.Module, nn.Module]:
    """Fused, and its stock twin."""
    torch.manual_seed(0)
    stock = randomise_batch_norms(block())
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    assert report.fused + report.partial
    return model, stock


def images() -> Tensor:
    """[2, 16, 7, 5]."""
    return torch.randn(2, 16, 7, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "block", [AddsTheMean, AddsToTheMean, AddsOneImage, AddsANumber, AddsAnotherType], ids=lambda b: b.__name__
)
def test_sums(block: type[Base], mode: str) -> None:
    model, _ = pair(block)
    assert_parity(model.train(mode == "train"), weighted_sum(images()))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_view_of_a_value_in_channels_last(training: bool) -> None:
    model, stock = pair(Views)
    torch.testing.assert_close(model.train(training)(images()), stock.train(training)(images()))


class AddsOutOfPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.head(x))) + x


class AddsInPlace(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.head(x)))
        y += x
        return y


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("block", [AddsOutOfPlace, AddsInPlace], ids=lambda b: b.__name__)
def test_the_type_of_a_sum_under_autocast(block: type[Base], training: bool) -> None:
    model, stock = pair(block)
    with torch.autocast("cpu", torch.bfloat16):
        y, want = model.train(training)(images()), stock.train(training)(images())
    assert y.dtype == want.dtype == (torch.float32 if block is AddsOutOfPlace else torch.bfloat16)
    torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)


def _without_gradient(self: Base, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.head(x)


@torch.no_grad()
def _decorated(self: Base, x: Tensor) -> Tensor:
    return self.head(x)


def _enters_through_a_function(self: Base, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    y = self.head(x)
    torch.set_grad_enabled(True)
    return y


def _casts(self: Base, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.head(x)


def _checkpoints(self: Base, x: Tensor) -> Tensor:
    return checkpoint(self.head, x, use_reentrant=False)


def _stores(self: Base, x: Tensor) -> Tensor:
    self.last = self.head(x)
    return self.last


def _appends(self: Base, x: Tensor) -> Tensor:
    self.seen.append(self.head(x))
    return self.seen[-1]


CHANGES = "its forward changes attributes"
MODES = "its forward changes how PyTorch takes gradients or casts"


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_without_gradient, "its forward enters a context"),
        (_decorated, "_decorated is wrapped by a decorator"),
        (_enters_through_a_function, MODES),
        (_casts, "its forward enters a context"),
        (_checkpoints, MODES),
        (_stores, CHANGES),
        (_appends, CHANGES),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_trace_does_not_see_is_left(forward: Any, reason: str) -> None:
    model = type("Block", (Base,), {"forward": forward})()
    before = set(vars(model))
    report = fused_resnet.fuse(model)
    assert [entry.reason for entry in report.skipped] == [reason]
    assert set(vars(model)) == before and model.seen == [] and torch.is_grad_enabled()
