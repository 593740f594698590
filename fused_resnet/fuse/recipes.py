"""Which modules can be fused, and by which mixin: one table."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from torch import nn

from ..nn.blocks import FusedBasicBlock, FusedBNAddAct2d, FusedBottleneck, FusedConvBNAct2d
from ..nn.chain import FusedCifarResNet, FusedLayerGetter, FusedResNet, FusedSequential
from ..nn.fused_module import FusedModule

__all__ = ["RECIPES", "Recipe", "find_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A class whose forward is known, and the mixin with the fused one.

    A module is recognised by the code it runs: the recipe serves every subclass that has left ``methods`` alone.
    """

    mixin: type[FusedModule]
    module: str  # where the class stands; looked up among the imported modules, never imported
    name: str
    methods: tuple[str, ...] = ("forward",)

    def recognises(self, module: nn.Module) -> bool:
        """Whether ``module`` runs the forward that this recipe knows."""
        known = getattr(sys.modules.get(self.module), self.name, None)
        kind = type(module)
        return known is not None and all(getattr(kind, m, None) is getattr(known, m) for m in self.methods)


RECIPES = (
    Recipe(FusedSequential, "torch.nn", "Sequential"),
    Recipe(FusedBasicBlock, "torchvision.models.resnet", "BasicBlock"),
    Recipe(FusedBottleneck, "torchvision.models.resnet", "Bottleneck"),
    Recipe(FusedResNet, "torchvision.models.resnet", "ResNet", ("forward", "_forward_impl")),
    Recipe(FusedLayerGetter, "torchvision.models._utils", "IntermediateLayerGetter"),
    Recipe(FusedBasicBlock, "fused_resnet.nn.reference", "BasicBlock"),
    Recipe(FusedBottleneck, "fused_resnet.nn.reference", "Bottleneck"),
    Recipe(FusedResNet, "fused_resnet.nn.reference", "ResNet"),
    Recipe(FusedCifarResNet, "fused_resnet.nn.reference", "CifarResNet"),
    Recipe(FusedConvBNAct2d, "fused_resnet.nn.reference", "ConvBNAct2d"),
    Recipe(FusedBNAddAct2d, "fused_resnet.nn.reference", "BNAddAct2d"),
)


def find_recipe(module: nn.Module) -> Recipe | None:
    """The recipe that knows the forward of ``module``, or None."""
    return next((recipe for recipe in RECIPES if recipe.recognises(module)), None)
