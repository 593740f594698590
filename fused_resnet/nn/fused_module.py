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

from .plan import Plan, at, is_plain
from .prepared import Layer
from .recognise import global_hook_reason

__all__ = ["FusedByPlan", "FusedModule", "fused_class"]


class FusedModule(nn.Module):
    """Base of the mixins. Each defines ``forward`` and the methods here that raise NotImplementedError."""

    stock_class: ClassVar[type[nn.Module]]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Children are of the types that :mod:`.recognise` has checked."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stock_class" in vars(cls):
            _classes[_key(cls.stock_class, vars(cls).get("plans", ()))] = cls

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        mixin = vars(type(self)).get("_mixin")
        if mixin is None:  # a class that stands in a file, and is found there by its name
            return reduced
        return _rebuild, (mixin, self.stock_class, vars(type(self)).get("plans", ())), *reduced[2:]

    def runs_stock(self, x: Any) -> bool:
        """Whether the stock forward must run for ``x``: under hooks for all modules, fx tracing or ``torch.func``."""
        return (
            not isinstance(x, Tensor) or torch._C._are_functorch_transforms_active() or global_hook_reason() is not None
        )

    def prepared_layers(self, x: int = 0, first: int = 1) -> list[Layer] | None:
        """What the fused forward does as layers for :func:`.prepared.run`; None where they cannot say all of it.

        Value ``x`` is its input, and ``first`` is to be the first layer's output.
        """
        return None

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


class FusedByPlan(FusedModule):
    """Mixin for a module whose forward was traced: runs the first of its class's plans that still holds."""

    plans: ClassVar[tuple[Plan, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and is_plain(args) and not self.runs_stock(args[0]):
            for plan in self.plans:
                if plan.takes(args) and plan.objection(self) is None:
                    return plan.run(self, args)
        return super().forward(*args, **kwargs)

    def runs_stock(self, x: Any) -> bool:
        return torch._C._are_functorch_transforms_active() or global_hook_reason() is not None

    def unfusable(self) -> str | None:
        reasons = [plan.objection(self) for plan in self.plans]
        return None if None in reasons else reasons[-1]

    def unfused_part(self) -> str | None:
        return self._plan.left or None

    def absorbed(self) -> Iterable[nn.Module]:
        return [at(self, path) for path, _ in self._plan.layers]

    def fused_parts(self) -> str:
        return self._plan.fused

    @property
    def _plan(self) -> Plan:
        return next(plan for plan in self.plans if plan.objection(self) is None)


_classes: dict[tuple[type[nn.Module], str], type[FusedModule]] = {}


def fused_class(mixin: type[FusedModule], stock: type[nn.Module], plans: tuple[Plan, ...] = ()) -> type[FusedModule]:
    """The subclass of ``stock`` with the forward of ``mixin``, which may run ``plans``; the same at every call."""
    key = _key(stock, plans)
    if key not in _classes:
        body: dict[str, Any] = {"stock_class": stock, "_mixin": mixin, "__module__": mixin.__module__}
        if plans:
            body["plans"] = plans
        types.new_class(f"Fused{stock.__name__}", (mixin, stock), exec_body=lambda namespace: namespace.update(body))
    return _classes[key]


def _key(stock: type[nn.Module], plans: tuple[Plan, ...]) -> tuple[type[nn.Module], str]:
    return stock, repr(plans) if plans else ""  # plans may hold lists, which have no hash


def _rebuild(mixin: type[FusedModule], stock: type[nn.Module], plans: tuple[Plan, ...]) -> FusedModule:
    cls = fused_class(mixin, stock, plans)
    return cls.__new__(cls)
