"""Models by name."""

import sys
import types

import pytest
import torchvision
from torch import nn

import fused_resnet
from fused_resnet.models import create_model


def test_a_bare_name_is_torchvisions_first_then_ours():
    assert type(create_model("resnet18")) is torchvision.models.ResNet
    assert type(create_model("resnet20")) is type(fused_resnet.models.resnet20())
    assert type(create_model("fused_resnet:resnet18")) is type(fused_resnet.models.resnet18())
    assert create_model("torchvision:resnet18", num_classes=7).fc.out_features == 7


def test_without_torchvision_a_bare_name_is_ours(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert type(create_model("resnet18")) is type(fused_resnet.models.resnet18())
    with pytest.raises(ImportError, match="model 'torchvision:resnet18' needs torchvision, which cannot be imported"):
        create_model("torchvision:resnet18")


def test_nothing_is_downloaded(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    assert isinstance(create_model("fcn_resnet50"), nn.Module)  # its backbone has pretrained weights by default


def test_timm_is_asked_by_prefix_only(monkeypatch):
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet26d"]
    timm.create_model = lambda name, **kwargs: nn.Linear(1, kwargs["num_classes"])
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert create_model("timm:resnet26d.bt_in1k", num_classes=3).out_features == 3
    with pytest.raises(ValueError, match="unknown model 'resnet26d'"):
        create_model("resnet26d")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_50", r"unknown model 'resnet_50'; nearest: resnet50"),
        ("fused_resnet:renset20", r"unknown model 'fused_resnet:renset20'; nearest: fused_resnet:resnet20"),
        ("", r"unknown model ''; nearest: none"),
        (
            "keras:resnet50",
            r"expected a model as NAME or SOURCE:NAME with SOURCE of torchvision, .*got 'keras:resnet50'",
        ),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name)
