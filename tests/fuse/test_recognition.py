"""What fuse recognises, what it leaves, and what it says about both."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

import fused_resnet
from fused_resnet.nn import reference

CLASSIFIERS = {
    "resnet18": 8,
    "resnet34": 16,
    "resnet50": 16,
    "resnet101": 33,
    "resnet152": 50,
    "resnext50_32x4d": 16,
    "resnext101_32x8d": 33,
    "resnext101_64x4d": 33,
    "wide_resnet50_2": 16,
    "wide_resnet101_2": 33,
}
BasicBlock, Bottleneck = torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck


def conv_bn(*after: nn.Module, **options: object) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, **options), nn.BatchNorm2d(8), *after)


@pytest.mark.parametrize(("name", "blocks"), CLASSIFIERS.items())
def test_torchvision_classifier_is_fused_whole(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    report = fused_resnet.fuse(model)
    assert (report.partial, report.skipped) == ([], [])
    assert report.fused[0] == ("", "ResNet", "conv1 bn1 relu maxpool")
    assert len(report.fused) == 1 + blocks
    assert report.fused[1].name == "layer1.0"
    assert "downsample" in next(entry for entry in report.fused if entry.name == "layer2.0").reason


@pytest.mark.parametrize("head", ["fcn", "deeplabv3"])
@pytest.mark.parametrize(("depth", "blocks"), [(50, 16), (101, 33)])
def test_torchvision_segmentation(head: str, depth: int, blocks: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(f"{head}_resnet{depth}", weights_backbone=None, aux_loss=True)
    report = fused_resnet.fuse(model)
    assert ("backbone", "IntermediateLayerGetter", "conv1 bn1 relu maxpool") in report.fused
    assert sum(entry.class_name == "Bottleneck" for entry in report.fused) == blocks
    assert ("aux_classifier", "FCNHead", "0 1 2") in report.fused
    if head == "fcn":
        assert report.skipped == []
    else:
        assert sum(entry.class_name == "ASPPConv" for entry in report.fused) == 3
        assert ("classifier.0.convs.4", "ASPPPooling", "1 2 3") in report.fused
        assert report.skipped == []


def test_detection_backbone_with_frozen_batch_norms() -> None:
    model = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    report = fused_resnet.fuse(model)
    assert (len(report.fused), report.skipped) == (17, [])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: BasicBlock(8, 8, norm_layer=nn.Identity), "bn1 is Identity, not BatchNorm2d"),
        (lambda: BasicBlock(8, 8, norm_layer=lambda c: nn.GroupNorm(2, c)), "bn1 is GroupNorm, not BatchNorm2d"),
        (lambda: changed(BasicBlock(8, 8), relu=nn.Tanh()), "relu is Tanh, which is no known activation"),
        (lambda: changed(BasicBlock(8, 8), relu=nn.GELU("tanh")), "GELU with approximate='tanh', not 'none'"),
        (lambda: changed(BasicBlock(8, 8), conv2=nn.Identity()), "conv2 is Identity, not Conv2d"),
        (
            lambda: changed(BasicBlock(8, 8), conv1=parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
            "conv1 is ParametrizedConv2d, not Conv2d",
        ),
        (lambda: conv_bn(nn.ReLU(), padding="same"), "0 has padding 'same', not numbers"),
        (lambda: conv_bn(nn.ReLU(), padding=1, padding_mode="reflect"), "0 pads with 'reflect', not zeros"),
        (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), "has no convolution with a norm behind it"),
        (lambda: LooksAtItsInput(), "its forward cannot be traced: symbolically traced variables"),
        (lambda: changed(BasicBlock(8, 8), forward=lambda x: x), "has a forward of its own on the instance"),
        (lambda: hooked(BasicBlock(8, 8)), "bn1 has hooks"),
    ],
)
def test_reason(make: object, reason: str) -> None:
    model = make()
    kind = type(model)
    report = fused_resnet.fuse(model)
    assert len(report.skipped) == 1
    assert report.fused == report.partial == []
    assert report.skipped[0].class_name == kind.__name__
    assert reason in report.skipped[0].reason
    assert type(model) is kind


def changed(module: nn.Module, **attributes: object) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def hooked(module: nn.Module) -> nn.Module:
    module.bn1.register_forward_hook(lambda *_: None)
    return module


class LooksAtItsInput(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


class SubclassWithTheSameForward(Bottleneck):
    pass


class ClassifierWithItsOwnForward(torchvision.models.ResNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))


def test_subclasses_are_known_by_their_forward() -> None:
    block = SubclassWithTheSameForward(16, 4)
    assert fused_resnet.fuse(block).fused[0].class_name == "SubclassWithTheSameForward"
    assert isinstance(block, SubclassWithTheSameForward)
    report = fused_resnet.fuse(ClassifierWithItsOwnForward(BasicBlock, [1, 1, 1, 1]))
    assert report.fused[0] == ("", "ClassifierWithItsOwnForward", "conv1 bn1 relu maxpool")  # traced
    assert len(report.fused) == 5 and report.skipped == []


def test_convolutions_of_other_networks() -> None:
    """Conv2dNormActivation is a Sequential without a forward of its own, and no norm, whatever its name says."""
    model = torchvision.models.vgg11_bn()
    assert len(fused_resnet.fuse(model).fused) == 1
    model = torchvision.models.mobilenet_v2()
    report = fused_resnet.fuse(model)
    assert len(report.fused) == 19 and report.partial == report.skipped == []
    assert report.fused[2] == (
        "features.2.conv",
        "Sequential",
        "0.0 0.1 0.2, 1.0 1.1 1.2, 2 3",
    )  # depthwise in the middle


class Tree(nn.Module):
    """A part of the module around it, for its one convolution, with a block of its own inside: as timm's DLA."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.conv, self.bn = BasicBlock(8, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(self.block(x))).relu()


class Forest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.tree, self.excluded = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Tree(), Tree()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.excluded(self.tree(self.bn(self.conv(x)).relu()))


def test_a_block_inside_a_part_is_fused_too() -> None:
    report = fused_resnet.fuse(Forest(), exclude=["excluded.block"])
    assert [entry.name for entry in report.fused] == ["", "tree.block"]
    assert report.skipped == [("excluded.block", "BasicBlock", "excluded")]


def test_layers_on_different_devices() -> None:
    model = torchvision.models.resnet18()
    model.layer3.to("meta")  # a block whole on another device is a user's own affair
    assert len(fused_resnet.fuse(model).fused) == 9
    fused_resnet.unfuse(model)
    model.layer2[0].bn2.to("meta")
    message = r"layers of layer2.0 on one device, got conv1.weight on cpu and bn2.weight on meta"
    with pytest.raises(ValueError, match=message):
        fused_resnet.fuse(model)
    assert type(model) is torchvision.models.ResNet and type(model.layer1[0]) is BasicBlock


def test_partial() -> None:
    with torch.device("meta"):
        report = fused_resnet.fuse(nn.Sequential(*conv_bn(nn.ReLU()), nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8)))
    assert report.partial == [("", "Sequential", "4 is InstanceNorm2d, not BatchNorm2d")]

    block = BasicBlock(8, 8, downsample=LooksAtItsInput())
    report = fused_resnet.fuse(block)
    assert report.partial == [("", "BasicBlock", "downsample is LooksAtItsInput, called as it is")]
    x = torch.randn(2, 8, 5, 5)
    out = block(x)
    fused_resnet.unfuse(block)
    torch.testing.assert_close(out, block(x))


def test_exclude() -> None:
    model = torchvision.models.resnet18()
    report = fused_resnet.fuse(model, exclude=["layer1", "layer2.0.bn2", "layer3.1", "maxpool"])
    skipped = {entry.name: entry.reason for entry in report.skipped}
    assert skipped == {
        "": "a module that it would fuse is excluded",
        "maxpool": "excluded",
        "layer1": "excluded",
        "layer2.0": "a module that it would fuse is excluded",
        "layer2.0.bn2": "excluded",
        "layer3.1": "excluded",
    }
    assert {type(model), type(model.layer1[0]), type(model.layer2[0])} == {torchvision.models.ResNet, BasicBlock}
    # What the block does not fuse is met on its own.
    assert [e.name for e in report.fused] == [
        *("layer2.0.downsample", "layer2.1", "layer3.0", "layer4.0", "layer4.1"),
    ]
    with pytest.raises(ValueError, match=r"got 'layer1\.O'; nearest: layer1.1, layer1.0, layer1"):
        fused_resnet.fuse(model, exclude=["layer1.O"])


def test_a_shared_block_is_fused_once() -> None:
    block = BasicBlock(8, 8)
    model = nn.Sequential(block, nn.ReLU(), block)
    x = torch.randn(2, 8, 5, 5)
    want = model(x)
    report = fused_resnet.fuse(model)
    assert [entry.name for entry in report.fused] == ["0"]
    block.bn1.reset_running_stats()
    torch.testing.assert_close(model(x), want)
    assert block.bn1.num_batches_tracked == 2


def test_fusing_again_changes_nothing_and_reports_the_same() -> None:
    model = torchvision.models.resnet18()
    first = fused_resnet.fuse(model)
    types = [type(module) for module in model.modules()]
    second = fused_resnet.fuse(model)
    assert first == second
    assert [type(module) for module in model.modules()] == types
    handle = model.layer1[0].conv1.register_forward_hook(lambda *_: None)
    assert fused_resnet.fuse(model).skipped == [("layer1.0", "BasicBlock", "conv1 has hooks")]
    handle.remove()
    assert fused_resnet.fuse(model) == first


def test_report_as_text_and_as_data() -> None:
    report = fused_resnet.fuse(conv_bn(nn.ReLU()))
    assert str(report).splitlines() == [
        "module   class       status  what, or why not",
        "(model)  Sequential  fused   0 1 2",
        "1 fused, 0 partial, 0 skipped",
    ]
    assert report.to_dict() == {
        "fused": [{"name": "", "class": "Sequential", "reason": "0 1 2"}],
        "partial": [],
        "skipped": [],
    }
    assert "nothing to fuse" in str(fused_resnet.fuse(nn.Linear(2, 2)))


def test_resnet152_takes_less_than_half_a_second() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet152()
    start = time.perf_counter()
    fused_resnet.fuse(model)
    assert time.perf_counter() - start < 0.5


def test_torchvision_is_never_imported() -> None:
    code = (
        "import sys, fused_resnet; m = fused_resnet.models.resnet20(); fused_resnet.unfuse(m); fused_resnet.fuse(m); "
        "assert not any(name.startswith('torchvision') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_our_own_reference_modules() -> None:
    for kind in (reference.ConvBNAct2d, reference.BNAddAct2d, reference.BasicBlock, reference.Bottleneck):
        module = kind(16) if kind is reference.BNAddAct2d else kind(16, 4 if kind is reference.Bottleneck else 16)
        assert len(fused_resnet.fuse(module).fused) == 1
        assert type(module) is getattr(fused_resnet.nn, kind.__name__)
