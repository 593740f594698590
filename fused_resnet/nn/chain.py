"""Layers called one after another, with their runs of convolution, batch norm, activation and max pool fused.

What is in no run is called as it is, hooks and all, so a chain computes what its layers compute, whatever they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import prepared, reference
from .deferred import conv_bn, conv_bn_act, defer, materialise, max_pool
from .fused_module import FusedModule
from .prepared import Layer
from .recognise import activation_reason, call_reason, conv_bn_reason, is_norm, max_pool_reason

__all__ = [
    "CifarResNet",
    "FusedCifarResNet",
    "FusedLayerGetter",
    "FusedResNet",
    "FusedSequential",
    "ResNet",
    "chain",
    "chain_runs",
    "is_chain",
]


def chain(layers: Iterable[nn.Module], x: Any, takes_raw: bool = True) -> Any:
    """What ``layers`` make of ``x``: with ``takes_raw`` a Deferred where a batch norm or its activation comes last."""
    rest: list[Any] = list(layers)
    while rest:
        length = run_length(rest)
        if length == 0:
            x = rest.pop(0)(materialise(x))
            continue
        (conv, bn, *after), rest = rest[:length], rest[length:]
        pool = after.pop() if after and isinstance(after[-1], nn.MaxPool2d) else None
        activation = after[0] if after else None
        if pool is not None:
            x = max_pool(defer(x, conv, bn, activation), pool)
        elif activation is None and not (run_length(rest) if rest else takes_raw):
            x = conv_bn(x, conv, bn)
        else:
            x = conv_bn_act(x, conv, bn, activation)
    return x if takes_raw else materialise(x)


def run_length(layers: Sequence[nn.Module]) -> int:
    """How many layers fuse from the first on: convolution and batch norm, maybe activation, maybe max pool; else 0."""
    if len(layers) < 2 or conv_bn_reason("", layers[0], "", layers[1]) is not None:
        return 0
    length = 2
    for reason in (activation_reason, max_pool_reason):
        if len(layers) > length and reason(layers[length]) is None:
            length += 1
    return length


def chain_runs(layers: Mapping[str, nn.Module]) -> tuple[list[list[str]], list[str]]:
    """The names of the layers of each fused run, and why each other convolution with a norm behind it is not in one."""
    names, modules = list(layers), list(layers.values())
    runs, reasons = [], []
    i = 0
    while i < len(names):
        length = run_length(modules[i:])
        if length > 0:
            runs.append(names[i : i + length])
        elif i + 1 < len(names) and isinstance(modules[i], nn.Conv2d) and is_norm(modules[i + 1]):
            reasons.append(conv_bn_reason(names[i], modules[i], names[i + 1], modules[i + 1]) or "")
        i += max(length, 1)
    return runs, reasons


def is_chain(module: nn.Module) -> bool:
    """Whether calling ``module`` calls its children one after another, and does nothing else."""
    forwards = (nn.Sequential.forward, FusedSequential.forward)
    return isinstance(module, nn.Sequential) and type(module).forward in forwards and call_reason(module) is None


class FusedChain(FusedModule):
    """Base of the mixins whose forward is a chain, or begins with one."""

    def chains(self) -> list[dict[str, nn.Module]]:
        """The layers of each chain, by name; not by ``children()``, which leaves out a layer's second use."""
        return [dict(self._modules)]  # type: ignore[arg-type]

    def unfusable(self) -> str | None:
        if any(runs for runs, _ in map(chain_runs, self.chains())):
            return None
        return self.unfused_part() or "has no convolution with a norm behind it"

    def unfused_part(self) -> str | None:
        return "; ".join(reason for layers in self.chains() for reason in chain_runs(layers)[1]) or None

    def absorbed(self) -> Iterable[nn.Module]:
        return [layers[name] for layers in self.chains() for run in chain_runs(layers)[0] for name in run]

    def fused_parts(self) -> str:
        return ", ".join(" ".join(run) for layers in self.chains() for run in chain_runs(layers)[0])


class FusedSequential(FusedChain):
    """Mixin for ``nn.Sequential`` and for its subclasses that have its forward."""

    def forward(self, x: Any) -> Any:
        if self.runs_stock(x):
            return super().forward(x)
        return chain(self._modules.values(), x, takes_raw=False)  # type: ignore[arg-type]


class FusedLayerGetter(FusedChain):
    """Mixin for torchvision's ``IntermediateLayerGetter``: the backbone of its segmentation and detection models."""

    def chains(self) -> list[dict[str, nn.Module]]:
        """One chain up to each layer that is asked for, which must come out as a tensor."""
        chains: list[dict[str, nn.Module]] = []
        complete = True
        for name, module in self._modules.items():
            if complete:
                chains.append({})
            chains[-1][name] = module  # type: ignore[assignment]
            complete = name in self.return_layers
        return chains

    def forward(self, x: Any) -> Any:
        if self.runs_stock(x):
            return super().forward(x)
        out = OrderedDict()
        for layers in self.chains():
            x = chain(layers.values(), x, takes_raw=False)
            last = list(layers)[-1]
            if last in self.return_layers:
                out[self.return_layers[last]] = x
        return out


class FusedResNet(FusedChain):
    """Mixin for a ResNet classifier, torchvision's or :class:`.reference.ResNet`: fuses the stem."""

    _stem: ClassVar[tuple[str, ...]] = ("conv1", "bn1", "relu", "maxpool")
    _stages: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3", "layer4")

    def chains(self) -> list[dict[str, nn.Module]]:
        """The stem."""
        return [{name: getattr(self, name) for name in self._stem}]

    def forward(self, x: Any) -> Any:
        if self.runs_stock(x):
            return super().forward(x)
        layers = None if prepared.is_observed() else self._prepared_layers(x)
        features = None if layers is None else prepared.run(self, layers, x)
        if features is None:
            features = chain([getattr(self, name) for name in self._stem], x, takes_raw=False)
            for name in self._stages:
                features = getattr(self, name)(features)
        return self.fc(torch.flatten(self.avgpool(features), 1))

    def _prepared_layers(self, x: Tensor) -> list[Layer] | None:
        """All up to the average pooling as layers; None where something else would run than these."""
        stem: list[Any] = [getattr(self, name) for name in self._stem]
        if run_length(stem) != len(stem):
            return None
        conv, bn, act, *pool = stem
        layers = [Layer(conv, bn, act, pool=pool[0] if pool else None)]
        for stage in (getattr(self, name) for name in self._stages):
            if not is_chain(stage):
                return None
            for block in stage._modules.values():
                if not isinstance(block, FusedModule) or call_reason(block) is not None or block.runs_stock(x):
                    return None
                more = block.prepared_layers(len(layers), len(layers) + 1)
                if more is None:
                    return None
                layers += more
        return layers


class FusedCifarResNet(FusedResNet):
    """Mixin for :class:`.reference.CifarResNet`: a stem without pooling, and three stages."""

    _stem = FusedResNet._stem[:3]
    _stages = FusedResNet._stages[:3]


class ResNet(FusedResNet, reference.ResNet):
    __doc__ = reference.ResNet.__doc__
    stock_class = reference.ResNet


class CifarResNet(FusedCifarResNet, reference.CifarResNet):
    __doc__ = reference.CifarResNet.__doc__
    stock_class = reference.CifarResNet
