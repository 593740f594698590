"""Constructors, parameters and initial weights of the models: torchvision's, and those of the paper."""

from __future__ import annotations

import pytest
import torch
import torchvision
from support.parity import stock_twin
from torch import nn

import fused_resnet
from fused_resnet import models
from fused_resnet.nn import reference

IMAGENET = [name for name in models.names() if name in torchvision.models.list_models()]


def test_names_are_the_models_of_the_package() -> None:
    assert len(IMAGENET) == 10
    assert set(models.names()) - set(IMAGENET) == {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110"}
    assert all(callable(getattr(models, name)) for name in models.names())


@pytest.mark.parametrize("name", IMAGENET)
def test_state_dict_is_that_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = getattr(models, name)().state_dict(), torchvision.models.get_model(name).state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].shape == theirs[key].shape for key in ours)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_the_same_seed_gives_the_same_weights_as_torchvision(name: str, zero_init_residual: bool) -> None:
    options = {"num_classes": 7, "zero_init_residual": zero_init_residual}
    torch.manual_seed(5)
    ours = getattr(models, name)(**options)
    torch.manual_seed(5)
    theirs = torchvision.models.get_model(name, **options)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
        ("resnet50", {"groups": 2, "width_per_group": 32}),
        ("resnet18", {"norm_layer": lambda channels: nn.GroupNorm(4, channels)}),
    ],
    ids=["resnet18", "dilated", "grouped", "group_norm"],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_same_weights_give_the_outputs_of_torchvision(name: str, options: dict, training: bool) -> None:
    ours = getattr(models, name)(num_classes=7, **options).train(training)
    theirs = torchvision.models.get_model(name, num_classes=7, **options).train(training)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 64, 64)
    twin = stock_twin(ours)
    want = theirs(x)
    assert torch.equal(twin(x), want)
    torch.testing.assert_close(ours(x), want, rtol=1e-3, atol=1e-3)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="None or three values, got \\(True,\\)"):
        models.resnet18(replace_stride_with_dilation=(True,))
    with pytest.raises(ValueError, match="expected groups=1, base_width=64 and dilation=1, got groups=2"):
        models.resnet18(groups=2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 0.27e6), ("resnet32", 0.46e6), ("resnet44", 0.66e6), ("resnet56", 0.85e6), ("resnet110", 1.7e6)],
)
def test_cifar_models_have_the_size_that_the_paper_gives(name: str, parameters: float) -> None:
    model = getattr(models, name)()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) + 1 == int(name.removeprefix("resnet"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.02)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_shortcut_without_parameters_strides_and_pads_with_zeros() -> None:
    x = torch.randn(2, 3, 5, 6)
    y = reference.ZeroPadShortcut(2, stride=2)(x)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert y.shape == (2, 5, 3, 3)
    assert not y[:, 3:].any()


def test_models_are_fused_and_unfuse_to_plain_twins() -> None:
    model = models.resnet20()
    report = fused_resnet.fuse(model)
    assert (len(report.fused), report.partial, report.skipped) == (10, [], [])
    before = [type(module) for module in model.modules()]
    fused_resnet.unfuse(model)
    assert type(model) is reference.CifarResNet
    assert {type(b) for layer in (model.layer1, model.layer2, model.layer3) for b in layer} == {reference.BasicBlock}
    fused_resnet.fuse(model)
    assert [type(module) for module in model.modules()] == before
