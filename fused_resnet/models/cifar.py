"""ResNets for 32x32 images, fused: He et al. 2015, "Deep residual learning for image recognition", section 4.2."""

from __future__ import annotations

from ..nn import BasicBlock, CifarResNet

__all__ = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20, [N, 3, 32, 32] to [N, num_classes], with random weights; see :class:`fused_resnet.nn.CifarResNet`."""
    return CifarResNet(BasicBlock, 3, num_classes)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32; see :func:`resnet20`."""
    return CifarResNet(BasicBlock, 5, num_classes)


def resnet44(num_classes: int = 10) -> CifarResNet:
    """ResNet-44; see :func:`resnet20`."""
    return CifarResNet(BasicBlock, 7, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """ResNet-56; see :func:`resnet20`."""
    return CifarResNet(BasicBlock, 9, num_classes)


def resnet110(num_classes: int = 10) -> CifarResNet:
    """ResNet-110; see :func:`resnet20`."""
    return CifarResNet(BasicBlock, 18, num_classes)
