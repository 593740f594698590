"""Models by function and by name. All have random weights: nothing is downloaded."""

from . import cifar, resnet
from .cifar import resnet20, resnet32, resnet44, resnet56, resnet110
from .registry import create_model
from .resnet import (
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)

__all__ = [
    "create_model",
    "names",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


def names() -> list[str]:
    """Names of this package's own models."""
    return [*resnet.__all__, *cifar.__all__]
