"""``fuse`` and ``unfuse``: the class of a module changes, the module does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..nn.fused_module import FusedByPlan, FusedModule, fused_class
from ..nn.plan import Plan
from ..nn.recognise import drop_probability, global_hook_reason
from .blocks import Blocks
from .planner import plan_of
from .recipes import find_recipe
from .report import FuseEntry, FuseReport
from .trace import TraceError, traces

__all__ = ["fuse", "unfuse"]


def fuse(
    model: nn.Module,
    *,
    exclude: Iterable[str] = (),
    extra: Mapping[type[nn.Module], type[FusedModule]] | None = None,
) -> FuseReport:
    """Fuses what it knows in ``model``, in place, and reports on every module with a convolution and a norm.

    Residual blocks with their projection shortcuts, the stem of a ResNet with its max pool, backbones of torchvision's
    segmentation and detection models, and runs of convolution, batch norm and activation in any ``nn.Sequential``.
    The forward of any other module that holds a convolution and a norm is traced with torch.fx, and what the graph
    proves to be such a run, or the end of a residual block, is fused: timm's models, and a user's own.
    Parameters, buffers, names, hooks and state_dict keys stay, and so do results, up to rounding. Fusing again changes
    nothing and reports what is fused. A wrapped or compiled model (DistributedDataParallel, ``torch.compile``) is fused
    inside; compiled code compiles anew at its next call.

    Args:
        model: any module; the model itself may be what is fused.
        exclude: paths as in ``model.named_modules()``; each leaves out that module and all it contains, and with it a
            block that would have fused that module. What an earlier call has fused stays as it is.
        extra: a mixin for a block class of your own, whose forward it replaces: a subclass of
            ``fused_resnet.nn.FusedModule``, such as one of ``fused_resnet.nn.FusedConvs``. It serves every subclass of
            the block class that has the same forward.

    Returns:
        A FuseReport with the lists ``fused``, ``partial`` and ``skipped`` of ``(name, class_name, reason)``.

    Raises:
        ValueError: for a path in ``exclude`` that the model does not have, with the nearest ones; for layers on
            different devices that would be fused. The model is then as it was.
        TypeError: for a mixin in ``extra`` that is no FusedModule.
    """
    for block, mixin in (extra or {}).items():
        if not (isinstance(mixin, type) and issubclass(mixin, FusedModule)):
            raise TypeError(f"extra: expected a subclass of FusedModule for {block.__name__}, got {mixin!r}")
    swap = _Swap(_excluded(model, exclude), extra or {})
    try:
        swap.visit("", model)
    except ValueError:
        swap.undo()
        raise
    return swap.report


def unfuse(model: nn.Module) -> None:
    """Gives every fused module in ``model`` its stock class back, in place; where there is none, it changes nothing.

    Raises TypeError, before anything changes, for an instance of a class that inherits from a fused one: it has no
    stock class to go back to.
    """
    fused = [(name, module) for name, module in model.named_modules() if isinstance(module, FusedModule)]
    for name, module in fused:
        if "stock_class" not in vars(type(module)):
            raise TypeError(
                f"unfuse: {name or 'the model'} is a {type(module).__name__}, which inherits from a fused class and "
                f"has no stock class; derive it from fused_resnet.nn.reference and fuse() the instance instead"
            )
    for _, module in fused:
        _set_class(module, module.stock_class)


class _Swap:
    """One call of :func:`fuse`."""

    def __init__(self, excluded: set[nn.Module], extra: Mapping[type[nn.Module], type[FusedModule]]) -> None:
        self.excluded, self.extra = excluded, extra
        self.blocks = Blocks(excluded)
        self.seen: set[nn.Module] = set()
        self.absorbed: set[nn.Module] = set()  # parts of a fused module: nothing to fuse but in their own children
        self.changed: list[tuple[nn.Module, type[nn.Module]]] = []  # with the class before
        self.plans: dict[Any, tuple[Plan, ...]] = {}
        self.report = FuseReport()

    def visit(self, name: str, module: nn.Module) -> None:
        """Fuses ``module`` and what is below it; top down, as a block takes its parts with it."""
        if module in self.seen:
            return
        self.seen.add(module)
        if module in self.excluded:
            self.report.skipped.append(FuseEntry(name, type(module).__name__, "excluded"))
            return
        if _is_quantizable(module):
            reason = "is made for quantization, which needs its own classes"
            self.report.skipped.append(FuseEntry(name, type(module).__name__, reason))
            return
        if module not in self.absorbed:
            self._fuse(name, module)
            if isinstance(module, FusedModule):
                self.absorbed.update(module.absorbed())
        for child_name, child in module.named_children():
            self.visit(f"{name}.{child_name}" if name else child_name, child)

    def undo(self) -> None:
        """Gives every module the class that it had before."""
        for module, before in self.changed:
            _set_class(module, before)

    def _fuse(self, name: str, module: nn.Module) -> None:
        """Changes the class of ``module`` if it can be fused, and reports on it if that was to be expected."""
        stock = type(module)
        class_name = getattr(stock, "stock_class", stock).__name__
        fused, reason = self._fused_class(module)
        if fused is not None:
            self.changed.append((module, stock))
            _set_class(module, fused)
            assert isinstance(module, FusedModule)
            reason = _objection(module, self.excluded)
            if reason is None:
                _check_one_device(name, module)
                part = module.unfused_part()
                entries, text = (self.report.fused, module.fused_parts())
                if part is not None:
                    entries, text = self.report.partial, part
                entries.append(FuseEntry(name, class_name, text))
                return
            _set_class(module, stock)
        if reason is not None and (self.blocks.is_block(module) or not isinstance(module, nn.Sequential)):
            self.report.skipped.append(FuseEntry(name, class_name, reason))

    def _fused_class(self, module: nn.Module) -> tuple[type[nn.Module] | None, str | None]:
        """The class that would fuse ``module``, or why there is none; neither where nobody would expect one."""
        kind = type(module)
        for block, mixin in self.extra.items():
            if isinstance(module, block) and getattr(kind, "stock_class", kind).forward is block.forward:
                return fused_class(mixin, kind), None
        if isinstance(module, FusedModule) and not isinstance(module, FusedByPlan):
            return kind, None
        recipe = find_recipe(module)
        if recipe is not None and not (isinstance(module, nn.Sequential) and self._has_parts(module)):
            return fused_class(recipe.mixin, kind), None
        if not self.blocks.is_block(module):
            return None, None
        stock = getattr(kind, "stock_class", kind)
        try:
            plans = self._plans(module, stock)
        except TraceError as refusal:
            return None, str(refusal)
        return (fused_class(FusedByPlan, stock, plans), None) if plans else (None, "has nothing that fuses")

    def _has_parts(self, module: nn.Module) -> bool:
        return any(isinstance(layer, nn.Conv2d) for layer in self.blocks.layers(module)) and any(
            map(self.blocks.is_part, module.children())
        )

    def _plans(self, module: nn.Module, stock: type[nn.Module]) -> tuple[Plan, ...]:
        """Plans for each way to call ``module``, those that hold where nothing is dropped first.

        A trace takes milliseconds, and most blocks of a model are alike: plans that hold for a block of the same layers
        are taken again.
        """
        layers = tuple((name, type(m), drop_probability(m)) for name, m in module.named_modules() if name)
        known = self.plans.get((stock, layers), ())
        if known and not any(plan.objection(module) for plan in known):
            return known
        kind = type(module)
        _set_class(module, stock)
        try:
            found = [
                plan_of(module, trace, drops_in_training)
                for trace in traces(module, self.blocks.is_part)
                for drops_in_training in (False, True)
            ]
        finally:
            _set_class(module, kind)
        plans = tuple({repr(plan): plan for plan in found if plan is not None}.values())
        self.plans[stock, layers] = plans
        return plans


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls


def _objection(module: FusedModule, excluded: set[nn.Module]) -> str | None:
    if "forward" in vars(module):
        return "has a forward of its own on the instance"
    if (reason := global_hook_reason()) is not None:
        return reason
    if not excluded.isdisjoint(module.absorbed()):
        return "a module that it would fuse is excluded"
    return module.unfusable()


def _check_one_device(name: str, module: FusedModule) -> None:
    """What is fused must lie on one device, or no op could read it."""
    absorbed = set(module.absorbed())
    tensors = {
        f"{path}.{key}": tensor
        for path, part in module.named_modules()
        if part in absorbed
        for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }
    first, *others = tensors.items()
    for path, tensor in others:
        if tensor.device != first[1].device:
            raise ValueError(
                f"fuse: expected the layers of {name or 'the model'} on one device, "
                f"got {first[0]} on {first[1].device} and {path} on {tensor.device}"
            )


def _excluded(model: nn.Module, exclude: Iterable[str]) -> set[nn.Module]:
    """Every module in the subtrees that ``exclude`` names."""
    modules = dict(model.named_modules(remove_duplicate=False))
    excluded: set[nn.Module] = set()
    for name in (exclude,) if isinstance(exclude, str) else exclude:
        if name not in modules:
            nearest = ", ".join(difflib.get_close_matches(name, modules, n=3, cutoff=0.4)) or "none"
            raise ValueError(f"exclude: expected a module's path, got {name!r}; nearest: {nearest}")
        excluded.update(modules[name].modules())
    return excluded


def _is_quantizable(module: nn.Module) -> bool:
    """Whether a model marks, by stubs of its own, where its tensors are to be quantized."""
    stubs = ("QuantStub", "FloatFunctional")
    return any(type(child).__name__ in stubs and "quantiz" in type(child).__module__ for child in module.children())
