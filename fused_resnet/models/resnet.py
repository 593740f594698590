"""ResNets for ImageNet-sized images, fused, with torchvision's constructors, parameters and state_dict keys.

ResNet: He et al. 2015, "Deep residual learning for image recognition", with the stride in the 3x3 convolution. ResNeXt:
Xie et al. 2016, "Aggregated residual transformations for deep neural networks". Wide ResNet: Zagoruyko and Komodakis
2016, "Wide residual networks".
"""

from __future__ import annotations

from typing import Any

from ..nn import BasicBlock, Bottleneck, ResNet

__all__ = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18 with random weights; keyword arguments go to :class:`fused_resnet.nn.ResNet`."""
    return ResNet(BasicBlock, (2, 2, 2, 2), **kwargs)


def resnet34(**kwargs: Any) -> ResNet:
    """ResNet-34; see :func:`resnet18`."""
    return ResNet(BasicBlock, (3, 4, 6, 3), **kwargs)


def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50; see :func:`resnet18`."""
    return ResNet(Bottleneck, (3, 4, 6, 3), **kwargs)


def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101; see :func:`resnet18`."""
    return ResNet(Bottleneck, (3, 4, 23, 3), **kwargs)


def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152; see :func:`resnet18`."""
    return ResNet(Bottleneck, (3, 8, 36, 3), **kwargs)


def resnext50_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-50 of 32 groups, 4 channels wide; see :func:`resnet18`."""
    return resnet50(**{"groups": 32, "width_per_group": 4, **kwargs})


def resnext101_32x8d(**kwargs: Any) -> ResNet:
    """ResNeXt-101 of 32 groups, 8 channels wide; see :func:`resnet18`."""
    return resnet101(**{"groups": 32, "width_per_group": 8, **kwargs})


def resnext101_64x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-101 of 64 groups, 4 channels wide; see :func:`resnet18`."""
    return resnet101(**{"groups": 64, "width_per_group": 4, **kwargs})


def wide_resnet50_2(**kwargs: Any) -> ResNet:
    """ResNet-50 with 3x3 convolutions twice as wide; see :func:`resnet18`."""
    return resnet50(**{"width_per_group": 128, **kwargs})


def wide_resnet101_2(**kwargs: Any) -> ResNet:
    """ResNet-101 with 3x3 convolutions twice as wide; see :func:`resnet18`."""
    return resnet101(**{"width_per_group": 128, **kwargs})
