"""Which module is a block, to be traced as one, and which is a part of the block around it.

A block is fused as one piece, and a hook on a part of it sends all of it to its stock forward. So blocks are kept
small: a block takes in its own layers, and small parts such as a convolution with its norm, or a projection shortcut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from ..nn.recognise import activation_reason, call_reason, is_list, is_norm
from .recipes import find_recipe

__all__ = ["Blocks"]

MAX_CONVOLUTIONS = 4  # of a Sequential that is a part, as the transform of a RegNet block or a deep stem is


class Blocks:
    """The blocks of one model. ``excluded`` modules are parts of none."""

    def __init__(self, excluded: Collection[nn.Module] = ()) -> None:
        self.excluded = excluded
        self._parts: dict[nn.Module, bool] = {}

    def is_part(self, module: nn.Module) -> bool:
        """Whether ``module`` belongs to the block around it, whose trace goes through it."""
        if module not in self._parts:
            self._parts[module] = self._is_part(module)
        return self._parts[module]

    def is_block(self, module: nn.Module) -> bool:
        """Whether ``module`` has a convolution and a norm, itself or in its parts, and a layer that is in no part."""
        if is_list(module):
            return False
        own = (isinstance(m, nn.Conv2d) or is_norm(m) or activation_reason(m) is None for m in module.children())
        return any(own) and self._holds_pair(module)

    def layers(self, module: nn.Module) -> Iterator[nn.Module]:
        """What is neither a part nor a list of modules, in ``module`` and its parts."""
        for child in module.children():
            if is_list(child) or self.is_part(child):
                yield from self.layers(child)
            else:
                yield child

    def _holds_pair(self, module: nn.Module) -> bool:
        """Whether ``module`` has a convolution and a norm, itself or in its parts."""
        layers = list(self.layers(module))
        return any(isinstance(layer, nn.Conv2d) for layer in layers) and any(map(is_norm, layers))

    def _is_part(self, module: nn.Module) -> bool:
        if is_norm(module) or module in self.excluded or call_reason(module) is not None or not list(module.children()):
            return False
        if type(module).__call__ is not nn.Module.__call__ or not self._holds_pair(module):
            return False
        sequential = type(module).forward is nn.Sequential.forward
        if not sequential and find_recipe(module) is not None:
            return False
        if sequential and any(self._is_whole(child) for child in module.children()):
            return False
        return sum(isinstance(m, nn.Conv2d) for m in self.layers(module)) <= (MAX_CONVOLUTIONS if sequential else 1)

    def _is_whole(self, module: nn.Module) -> bool:
        """Whether ``module`` is a block, and no part of one."""
        return any(map(self.is_block, module.modules())) and not self.is_part(module)
