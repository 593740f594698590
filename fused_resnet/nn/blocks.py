"""Residual blocks and their parts, fused.

A block brings its input to channels_last once, for the convolutions and the shortcut alike; its convolutions hand each
other raw outputs; its tail applies the last batch norm, and the shortcut's, while it adds. See :mod:`.deferred`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops import checks
from . import prepared, reference, trained
from .chain import chain, chain_runs, is_chain, run_length
from .deferred import Deferred, add_act, conv_bn_act, conv_bn_add_act, materialise, norm
from .fused_module import FusedModule
from .prepared import Layer
from .recognise import activation_reason, batch_norm_reason, conv_bn_reason, is_norm

__all__ = [
    "BNAddAct2d",
    "BasicBlock",
    "Bottleneck",
    "ConvBNAct2d",
    "FusedBNAddAct2d",
    "FusedBasicBlock",
    "FusedBottleneck",
    "FusedConvBNAct2d",
    "FusedConvs",
]


class FusedConvs(FusedModule):
    """Base of the mixins for a fixed sequence of convolutions, each with a batch norm, and one activation module.

    They fuse all or nothing: one child that is hooked or of another type, and the stock forward runs.
    """

    _convs: ClassVar[tuple[tuple[str, str], ...]]  # names of each convolution and its batch norm
    _activation: ClassVar[str]

    def runs_stock(self, x: Any) -> bool:
        return super().runs_stock(x) or self.unfusable() is not None

    def unfusable(self) -> str | None:
        for conv, bn in self._convs:
            reason = conv_bn_reason(conv, getattr(self, conv), bn, getattr(self, bn))
            if reason is not None:
                return reason
        reason = activation_reason(getattr(self, self._activation))
        return None if reason is None else f"{self._activation} {reason}"

    def absorbed(self) -> Iterable[nn.Module]:
        names = [*(name for pair in self._convs for name in pair), self._activation]
        return [getattr(self, name) for name in names]

    def fused_parts(self) -> str:
        return ", ".join(f"{conv} {bn}" for conv, bn in self._convs)


class FusedBlock(FusedConvs):
    """Base of the mixins for residual blocks."""

    _activation = "relu"

    def unfused_part(self) -> str | None:
        if self.downsample is None or not any(is_norm(module) for module in self.downsample.modules()):
            return None
        if not is_chain(self.downsample):
            return f"downsample is {type(self.downsample).__name__}, called as it is"
        _, reasons = chain_runs(self.downsample._modules)
        return "; ".join(f"downsample.{reason}" for reason in reasons) or None

    def absorbed(self) -> Iterable[nn.Module]:
        shortcut = self.downsample.modules() if self.downsample is not None and is_chain(self.downsample) else ()
        return [*super().absorbed(), *shortcut]

    def fused_parts(self) -> str:
        return super().fused_parts() + ", add" + ("" if self.downsample is None else ", downsample")

    def forward(self, x: Any) -> Tensor:
        if self.runs_stock(x):
            return super().forward(x)
        x = checks.channels_last(x)
        if (layers := self.prepared_layers()) is not None:
            out = (trained if torch.is_grad_enabled() else prepared).run(self, layers, x)
            if out is not None:
                return out
        pairs = [(getattr(self, conv), getattr(self, bn)) for conv, bn in self._convs]
        y: Tensor | Deferred = x
        for conv, bn in pairs[:-1]:
            y = conv_bn_act(y, conv, bn, self.relu)
        return conv_bn_add_act(y, *pairs[-1], self.shortcut(x), self.relu)

    def prepared_layers(self, x: int = 0, first: int = 1) -> list[Layer] | None:
        if type(self).forward is not FusedBlock.forward:
            return None
        modules: dict[str, Any] = self._modules
        layers: list[Layer] = []
        residual = x
        if (shortcut := self.downsample) is not None:
            pair: list[Any] = list(shortcut._modules.values())
            if not is_chain(shortcut) or len(pair) != 2 or run_length(pair) != 2:
                return None
            layers.append(Layer(pair[0], pair[1], None, x))
            residual = first
        for conv, bn in self._convs:
            layers.append(Layer(modules[conv], modules[bn], modules["relu"], x))
            x = first + len(layers) - 1
        layers[-1] = layers[-1]._replace(residual=residual)
        return layers

    def shortcut(self, x: Tensor) -> Tensor | Deferred:
        """What the block adds, for its input ``x`` [N, C, H, W]."""
        if self.downsample is None:
            return x
        if is_chain(self.downsample):
            return chain(self.downsample, x)
        residual: Tensor = self.downsample(x)
        return residual


class FusedBasicBlock(FusedBlock):
    """Mixin for ``BasicBlock``."""

    _convs = (("conv1", "bn1"), ("conv2", "bn2"))


class FusedBottleneck(FusedBlock):
    """Mixin for ``Bottleneck``."""

    _convs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))


class FusedConvBNAct2d(FusedConvs):
    """Mixin for :class:`.reference.ConvBNAct2d`."""

    _convs = (("conv", "bn"),)
    _activation = "act"

    def forward(self, x: Any) -> Tensor:
        if self.runs_stock(x):
            return super().forward(x)
        return materialise(conv_bn_act(x, self.conv, self.bn, self.act))


class FusedBNAddAct2d(FusedModule):
    """Mixin for :class:`.reference.BNAddAct2d`."""

    def unfusable(self) -> str | None:
        if (reason := batch_norm_reason(self.bn)) is not None:
            return f"bn {reason}"
        reason = activation_reason(self.act)
        return None if reason is None else f"act {reason}"

    def absorbed(self) -> Iterable[nn.Module]:
        return self.bn, self.act

    def fused_parts(self) -> str:
        return "bn, add"

    def forward(self, x: Any, residual: Tensor | None = None) -> Tensor:
        if self.runs_stock(x) or self.unfusable() is not None:
            return super().forward(x, residual)
        return add_act(norm(x, self.bn), residual, self.act)


class BasicBlock(FusedBasicBlock, reference.BasicBlock):
    __doc__ = reference.BasicBlock.__doc__
    stock_class = reference.BasicBlock


class Bottleneck(FusedBottleneck, reference.Bottleneck):
    __doc__ = reference.Bottleneck.__doc__
    stock_class = reference.Bottleneck


class ConvBNAct2d(FusedConvBNAct2d, reference.ConvBNAct2d):
    __doc__ = reference.ConvBNAct2d.__doc__
    stock_class = reference.ConvBNAct2d


class BNAddAct2d(FusedBNAddAct2d, reference.BNAddAct2d):
    __doc__ = reference.BNAddAct2d.__doc__
    stock_class = reference.BNAddAct2d
