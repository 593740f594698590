"""The same networks in plain PyTorch: what fused modules are subclasses of, and what ``unfuse`` gives back.

Constructors, parameter names and state_dict keys are those of torchvision's ResNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BNAddAct2d", "BasicBlock", "Bottleneck", "CifarResNet", "ConvBNAct2d", "ResNet", "ZeroPadShortcut"]

Norm = Callable[[int], nn.Module]


class ConvBNAct2d(nn.Module):
    """Convolution, batch norm and activation: [N, in_channels, H, W] to [N, out_channels, OH, OW].

    ``padding`` None keeps the size at stride 1. ``activation`` is a module; ReLU by default.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class BNAddAct2d(nn.Module):
    """Batch norm, residual add and activation, the tail of a residual block: [N, C, H, W] to the same.

    ``activation`` is a module; ReLU by default.
    """

    def __init__(self, num_features: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(num_features)
        self.act = nn.ReLU() if activation is None else activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.bn(x)
        return self.act(y if residual is None else y + residual)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, inplanes, H, W] to [N, planes, H / stride, W / stride]."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64 or dilation != 1:
            raise ValueError(
                "BasicBlock: expected groups=1, base_width=64 and dilation=1, "
                f"got groups={groups}, base_width={base_width} and dilation={dilation}"
            )
        norm = norm_layer or nn.BatchNorm2d
        self.conv1 = _conv(inplanes, planes, 3, stride)
        self.bn1 = norm(planes)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: [N, inplanes, H, W] to [N, 4 planes, H / stride, W / stride].

    The stride is that of the 3x3 convolution, as in torchvision ("ResNet v1.5").
    """

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        norm = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = _conv(inplanes, width, 1)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3, stride, groups, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, planes * self.expansion, 1)
        self.bn3 = norm(planes * self.expansion)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ZeroPadShortcut(nn.Module):
    """The parameter-free shortcut, option A of He et al. 2015: every ``stride``-th pixel, new channels zero.

    [N, C, H, W] to [N, C + new_channels, H / stride, W / stride].
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResNet(nn.Module):
    """ResNet for images of about 224 pixels: [N, 3, H, W] to [N, num_classes].

    Args:
        block: class of the residual blocks, with the constructor of :class:`Bottleneck`.
        layers: number of blocks in each of the four stages.
        num_classes: size of the output.
        zero_init_residual: start each block as the identity, its last batch norm's weight at zero.
        groups, width_per_group: of the 3x3 convolutions in a :class:`Bottleneck`.
        replace_stride_with_dilation: for stages two to four, whether to dilate instead of striding.
        norm_layer: makes a norm from its number of channels; ``nn.BatchNorm2d`` by default.

    Raises ValueError where ``replace_stride_with_dilation`` does not have three values.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        dilate = (False, False, False) if replace_stride_with_dilation is None else replace_stride_with_dilation
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation: expected None or three values, got {dilate!r}")
        norm = norm_layer or nn.BatchNorm2d
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        inplanes, dilation = 64, 1
        for i, (planes, blocks) in enumerate(zip((64, 128, 256, 512), layers, strict=True)):
            stride, first_dilation = (1 if i == 0 else 2), dilation
            if i > 0 and dilate[i - 1]:
                stride, dilation = 1, dilation * stride
            outplanes = planes * block.expansion
            downsample = None
            if stride != 1 or inplanes != outplanes:
                downsample = nn.Sequential(_conv(inplanes, outplanes, 1, stride), norm(outplanes))
            first = block(inplanes, planes, stride, downsample, groups, width_per_group, first_dilation, norm)
            rest = (
                block(outplanes, planes, 1, None, groups, width_per_group, dilation, norm) for _ in range(blocks - 1)
            )
            setattr(self, f"layer{i + 1}", nn.Sequential(first, *rest))
            inplanes = outplanes
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Module = nn.Linear(inplanes, num_classes)
        _initialise(self, zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class CifarResNet(nn.Module):
    """ResNet for 32x32 images, He et al. 2015, section 4.2: [N, 3, 32, 32] to [N, num_classes].

    A 3x3 convolution and three stages of 16, 32 and 64 channels, of ``blocks`` basic blocks each: 6 blocks + 2 layers.
    Where the size changes the shortcut has no parameters, "option A", which the paper uses in all its networks for
    these images: so that they differ from their plain counterparts in nothing but the shortcuts.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(self, block: type[BasicBlock], blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = _conv(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        inplanes = 16
        for i, planes in enumerate((16, 32, 64)):
            shortcut = ZeroPadShortcut(planes - inplanes, stride=2) if planes != inplanes else None
            first = block(inplanes, planes, 1 if shortcut is None else 2, shortcut)
            setattr(self, f"layer{i + 1}", nn.Sequential(first, *(block(planes, planes) for _ in range(blocks - 1))))
            inplanes = planes
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Module = nn.Linear(inplanes, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel_size // 2)
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)


def _initialise(model: nn.Module, zero_init_residual: bool = False) -> None:
    """He et al. 2015 ("Delving deep into rectifiers"), fan out, for convolutions; norms start as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules() if zero_init_residual else ():
        if isinstance(module, BasicBlock | Bottleneck):
            weight = (module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight
            if isinstance(weight, Tensor):
                nn.init.zeros_(weight)
