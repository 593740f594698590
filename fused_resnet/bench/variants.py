"""The variants a benchmark compares: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["VARIANTS", "Variant"]

# Torch is imported inside the functions: the table is read by the command line's help, which must be instant.


@dataclass(frozen=True)
class Variant:
    """A way to run a model. ``prepare`` takes it as built and returns what is called with the images."""

    name: str
    description: str
    prepare: Callable[[nn.Module], Callable[[Tensor], Tensor]]
    channels_last: bool = True  # memory format of parameters and images
    is_stock: bool = True  # a baseline for speedup_vs_best_stock


def _fused(model: nn.Module) -> nn.Module:
    import fused_resnet

    fused_resnet.fuse(model)
    return model


def _stock(model: nn.Module) -> nn.Module:
    import fused_resnet

    fused_resnet.unfuse(model)  # models of this package are born fused
    return model


def _compile(model: nn.Module) -> Callable[[Tensor], Tensor]:
    import torch

    return torch.compile(_stock(model))


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("fused", "fused_resnet.fuse, channels_last", _fused, is_stock=False),
        Variant("eager", "stock PyTorch, contiguous", _stock, channels_last=False),
        Variant("channels_last", "stock PyTorch, channels_last", _stock),
        Variant("compile", "torch.compile of stock PyTorch, channels_last", _compile),
    )
}
