"""Modules that fuse knows by tracing their forward: what is proved is fused, what is not runs as it stands."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support.oracle import relative_error
from support.parity import assert_parity, randomise_batch_norms, weighted_sum
from torch import Tensor, nn

import fused_resnet
from fused_resnet.nn import FusedConvs
from fused_resnet.nn.fused_module import FusedByPlan

pytestmark = pytest.mark.usefixtures("one_thread")

SWITCH = False
ANYTHING: list[int] = []


class Base(nn.Module):
    """Layers for the blocks of these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.act = nn.ReLU(inplace=True)
        self.drop_path = nn.Identity()


class PreActivation(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.bn1(x)))
        return x + self.conv2(self.act(self.bn2(y)))


class Functional(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.drop_path(self.bn2(self.conv2(y)))
        return torch.relu(torch.add(y, x))


class ReadTwice(Base):
    """The first norm's value is read by the second convolution and by the add: it must be computed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.act(self.bn2(self.conv2(y)) + y)


class InPlaceBetween(Base):
    """The input changes after the convolution has read it, and before the add."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        y = self.bn1(self.conv1(x))
        x.mul_(2.0)
        y += x
        return self.act(y)


class InPlaceOnInput(Base):
    """An add into what the caller holds: as it stands."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        kept = x
        x += self.bn1(self.conv1(x))
        return self.bn2(self.conv2(x)) + kept


class NormTwice(Base):
    """Running statistics move twice, in this order."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv2(self.act(self.bn1(self.conv1(x)))))


class ParametersAndSlices(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        left, right = torch.split(self.bn1(self.conv1(x)), 8, 1)
        y = torch.cat([right * self.gamma, left[:, 0 : x.shape[1] // 2]], dim=1)
        return {"out": [self.act(self.bn2(self.conv2(y)))]}


class Optional(Base):
    def forward(self, x: Tensor, shortcut: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act(y + (x if shortcut is None else shortcut)) * scale


class ReadsTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.act(y) if self.training else self.bn2(self.conv2(y))


BLOCKS = (PreActivation, Functional, ReadTwice, Optional, ReadsTraining)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 16, 9, 9)


def fused(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    model = randomise_batch_norms(make())
    fused_resnet.fuse(model)
    return model


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("block", BLOCKS)
def test_parity(block: type[Base], mode: str, x: Tensor, target: str) -> None:
    model = fused(block).train(mode == "train")
    assert isinstance(model, FusedByPlan) and isinstance(model, block)
    assert_parity(model, weighted_sum(x))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("block", [InPlaceBetween, InPlaceOnInput])
def test_in_place_calls_change_what_they_change_in_stock(block: type[Base], mode: str, x: Tensor) -> None:
    model = fused(block).train(mode == "train")
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    assert isinstance(model, FusedByPlan)
    with torch.no_grad():  # a gradient would need what is overwritten
        assert relative_error(model(x), twin(x)) < 1e-6


@pytest.mark.parametrize(
    ("block", "status", "reason"),
    [
        (PreActivation, "partial", "add after x and conv2"),  # no norm stands before it
        (Functional, "fused", "conv1 bn1 relu, conv2 bn2 add relu"),
        (ReadTwice, "fused", "conv1 bn1, conv2 bn2 add act"),
        (InPlaceBetween, "fused", "conv1 bn1, add act"),
        (InPlaceOnInput, "partial", "add after mul and bn1"),
        (NormTwice, "skipped", "has nothing that fuses"),
        (ParametersAndSlices, "fused", "conv1 bn1, conv2 bn2 act"),
    ],
)
def test_report(block: type[Base], status: str, reason: str) -> None:
    (entry,) = getattr(fused_resnet.fuse(block()), status)
    assert entry == ("", block.__name__, reason)


def test_values_of_any_structure(x: Tensor) -> None:
    model = fused(ParametersAndSlices)
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    (got,), (want,) = model(x)["out"], twin(x)["out"]
    assert relative_error(got, want) < 1e-6
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert relative_error(a, b) < 1e-6


def test_each_way_to_call(x: Tensor) -> None:
    model = fused(Optional)
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    shortcut = torch.randn_like(x)
    seen: list[bool] = []
    model.conv2.register_forward_hook(lambda *_: seen.append(True))  # the stock forward calls it
    for args, kwargs in (
        ((x,), {}),
        ((x, shortcut), {}),
        ((x, None), {}),
        ((x, shortcut, 2.0), {}),
        ((x,), {"scale": 3}),
    ):
        assert relative_error(model(*args, **kwargs), twin(*args, **kwargs)) < 1e-6
    assert len(seen) == 5
    model.conv2._forward_hooks.clear()
    for args in ((x,), (x, shortcut), (x, None)):
        assert sum(plan.takes(args) for plan in model.plans) == 1
        assert relative_error(model(*args), twin(*args)) < 1e-6
    assert not any(plan.takes((x, shortcut, 2.0)) for plan in model.plans)


class ReadsMuch(Base):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.sizes, self.extra = False, [1, 2], None

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        for size in self.sizes:
            y = y * size
        if self.extra is not None:
            y = self.extra(y)
        return y * 2 if self.twice or SWITCH else y


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m, "twice", True), "twice was False when it was fused and is True"),
        (lambda m: m.sizes.append(3), r"sizes was \[1, 2\] when it was fused and is \[1, 2, 3\]"),
        (lambda m: setattr(m, "extra", nn.Tanh()), "its layers are others"),
        (lambda m: setattr(m, "act", nn.Tanh()), "act is Tanh"),
        (lambda m: m.conv1.register_forward_hook(lambda *_: None), "conv1 has hooks"),
    ],
    ids=["attribute", "list", "layer", "activation", "hook"],
)
def test_what_changes_later_is_seen(change: Callable[[nn.Module], object], reason: str, x: Tensor) -> None:
    model = fused(ReadsMuch).eval()
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    assert len(fused_resnet.fuse(model).fused) == 1
    for m in (model, twin):
        change(m)
    torch.testing.assert_close(model(x), twin(x))
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(model.unfusable())


def test_a_global_that_changes_is_seen(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fused(ReadsMuch).eval()
    before = model(x)
    monkeypatch.setitem(globals(), "SWITCH", True)
    torch.testing.assert_close(model(x), 2 * before)
    assert "SWITCH is another" in model.unfusable()


def refused(name: str, forward: Callable[..., Tensor]) -> nn.Module:
    return type(name, (Base,), {"forward": forward, "count": 0})()


def _counts(self: nn.Module, x: Tensor) -> Tensor:
    self.count += 1
    return self.bn1(self.conv1(x))


def _draws(self: nn.Module, x: Tensor) -> Tensor:
    return self.bn1(self.conv1(x)) * random.random()


def _makes(self: nn.Module, x: Tensor) -> Tensor:
    return self.bn1(self.conv1(x)) * torch.ones(1)


def _asks(self: nn.Module, x: Tensor) -> Tensor:
    return self.bn1(self.conv1(x)) * (2 if torch.is_grad_enabled() else 1)


def _reads_a_list(self: nn.Module, x: Tensor) -> Tensor:
    return self.bn1(self.conv1(x)) * len(ANYTHING)


def _varies(self: nn.Module, *x: Tensor) -> Tensor:
    return self.bn1(self.conv1(x[0]))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_counts, "its forward changes attributes"),
        (_draws, "its forward draws random numbers itself"),
        (_makes, "its forward makes tensors itself"),
        (_asks, "its forward asks PyTorch is_grad_enabled"),
        (_reads_a_list, "its forward reads the global ANYTHING"),
        (_varies, "takes a variable number of arguments"),
    ],
)
def test_what_cannot_be_proved_is_left(forward: Callable[..., Tensor], reason: str, x: Tensor) -> None:
    model = refused(forward.__name__, forward)
    report = fused_resnet.fuse(model)
    assert reason in report.skipped[0].reason and report.fused == []
    assert getattr(model, "count", 0) <= 1 and not [n for n in vars(model) if n.startswith("_tensor_constant")]


def test_copies_and_pickles_and_back(x: Tensor) -> None:
    model = fused(Functional).eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
        fused_resnet.unfuse(twin)
        assert type(twin) is Functional
    again = fused_resnet.fuse(model)
    assert again.fused[0].reason == "conv1 bn1 relu, conv2 bn2 add relu"


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("block", [PreActivation, Functional, Optional, ReadsTraining, ParametersAndSlices])
def test_compiles_without_a_break(block: type[Base], training: bool, x: Tensor) -> None:
    torch._dynamo.reset()  # all blocks share the code of one forward, and so its limit of compilations
    model = fused(block).train(training)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours, want = (next(iter(y.values()))[0] if isinstance(y, dict) else y for y in (compiled(x), eager(x)))
    assert relative_error(ours, want) < 1e-6
    for a, b in zip(model.buffers(), eager.buffers(), strict=True):
        assert relative_error(a, b) < 1e-6


def test_a_block_keeps_one_tensor_for_each_convolution(x: Tensor) -> None:
    from fused_resnet.bench.memory import SavedBytes

    sizes = []
    for model in (fused(Functional), Functional()):
        with SavedBytes() as saved:
            output = model(x)
        sizes.append(saved.count([*model.parameters(), *model.buffers(), x]))
        assert output.requires_grad
    assert sizes[0] < 0.8 * sizes[1]


class LoneConv(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)).mean()


@pytest.mark.parametrize("make", [LoneConv, lambda: nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.Tanh())])
def test_training_calls_the_layers_where_nothing_takes_their_value_raw(
    make: Callable[[], nn.Module], x: Tensor
) -> None:
    model, calls = randomise_batch_norms(make()), []
    assert len(fused_resnet.fuse(model).fused) == 1
    assert_parity(model, weighted_sum(x))
    with mock.patch.object(nn.BatchNorm2d, "forward", lambda norm, y: calls.append(norm.training) or y):
        model.train()(x)
        model.eval()(x)
    assert calls == [True]


class MyBlock(nn.Module):
    """A user's block that no trace could prove: its forward looks at the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1000:
            raise ValueError("a large batch")
        return self.act(self.norm(self.conv(x)) + x)


class FusedMyBlock(FusedConvs):
    _convs = (("conv", "norm"),)
    _activation = "act"

    def forward(self, x: Tensor) -> Tensor:
        if self.runs_stock(x):
            return super().forward(x)
        return fused_resnet.nn.conv_bn_add_act(x, self.conv, self.norm, x, self.act)


def test_a_mixin_of_the_users_own(x: Tensor) -> None:
    model = nn.Sequential(randomise_batch_norms(MyBlock()), nn.ReLU())
    assert "cannot be traced" in fused_resnet.fuse(model).skipped[0].reason
    report = fused_resnet.fuse(model, extra={MyBlock: FusedMyBlock})
    assert report.fused == [("0", "MyBlock", "conv norm")] and isinstance(model[0], FusedMyBlock)
    assert_parity(model, weighted_sum(x))
    fused_resnet.unfuse(model)
    assert type(model[0]) is MyBlock
    with pytest.raises(TypeError, match="extra: expected a subclass of FusedModule for MyBlock, got"):
        fused_resnet.fuse(model, extra={MyBlock: nn.ReLU})
