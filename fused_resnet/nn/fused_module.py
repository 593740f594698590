"""Fusion by class: a fused module is an instance of a subclass of its stock class, whose forward is fused.

As with ``torch.nn.utils.parametrize``, the module keeps its children, parameters, buffers, hooks and place; only its
class changes, and changes back. The subclass has two bases: a mixin with the fused forward, and the stock class, whose
forward runs whenever the fused one would do something else (see :mod:`.recognise`).
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .recognise import global_hook_reason

__all__ = ["FusedModule", "fused_class"]


class FusedModule(nn.Module):
    """Base of the mixins. Each defines ``forward`` and the methods here that raise NotImplementedError."""

    stock_class: ClassVar[type[nn.Module]]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Children are of the types that :mod:`.recognise` has checked."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stock_class" in vars(cls):
            _classes[cls.stock_class] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        mixin = vars(type(self)).get("_mixin")
        if mixin is None:  # a class that stands in a file, and is found there by its name
            return reduced
        return _rebuild, (mixin, self.stock_class), *reduced[2:]

    def runs_stock(self, x: Any) -> bool:
        """Whether the stock forward must run for ``x``: under hooks for all modules, fx tracing or ``torch.func``."""
        return (
            not isinstance(x, Tensor) or torch._C._are_functorch_transforms_active() or global_hook_reason() is not None
        )

    def unfusable(self) -> str | None:
        """Why nothing of this module can be fused as it is now, or None."""
        raise NotImplementedError

    def unfused_part(self) -> str | None:
        """Why a part of this module is called as it is, or None."""
        return None

    def absorbed(self) -> Iterable[nn.Module]:
        """The modules below this one that its fused forward does not call."""
        raise NotImplementedError

    def fused_parts(self) -> str:
        """What the fused forward fuses, in words."""
        raise NotImplementedError


_classes: dict[type[nn.Module], type[FusedModule]] = {}


def fused_class(mixin: type[FusedModule], stock: type[nn.Module]) -> type[FusedModule]:
    """The subclass of ``stock`` with the forward of ``mixin``; the same one at every call."""
    if stock not in _classes:
        body = {"stock_class": stock, "_mixin": mixin, "__module__": mixin.__module__}
        types.new_class(f"Fused{stock.__name__}", (mixin, stock), exec_body=lambda namespace: namespace.update(body))
    return _classes[stock]


def _rebuild(mixin: type[FusedModule], stock: type[nn.Module]) -> FusedModule:
    cls = fused_class(mixin, stock)
    return cls.__new__(cls)
