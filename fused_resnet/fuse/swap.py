"""``fuse`` and ``unfuse``: the class of a module changes, the module does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn

from ..nn.fused_module import FusedModule, fused_class
from ..nn.recognise import global_hook_reason
from .recipes import find_recipe, holds_convolution_and_norm
from .report import FuseEntry, FuseReport

__all__ = ["fuse", "unfuse"]


def fuse(model: nn.Module, *, exclude: Iterable[str] = ()) -> FuseReport:
    """Fuses what it knows in ``model``, in place, and reports on every module with a convolution and a norm.

    Residual blocks with their projection shortcuts, the stem of a ResNet with its max pool, backbones of torchvision's
    segmentation and detection models, and runs of convolution, batch norm and activation in any ``nn.Sequential``.
    Parameters, buffers, names, hooks and state_dict keys stay, and so do results, up to rounding. Fusing again changes
    nothing and reports what is fused. A wrapped or compiled model (DistributedDataParallel, ``torch.compile``) is fused
    inside; compiled code compiles anew at its next call.

    Args:
        model: any module; the model itself may be what is fused.
        exclude: paths as in ``model.named_modules()``; each leaves out that module and all it contains, and with it a
            block that would have fused that module. What an earlier call has fused stays as it is.

    Returns:
        A FuseReport with the lists ``fused``, ``partial`` and ``skipped`` of ``(name, class_name, reason)``.

    Raises:
        ValueError: for a path in ``exclude`` that the model does not have, with the nearest ones.
    """
    report = FuseReport()
    _visit("", model, _excluded(model, exclude), set(), report)
    return report


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


def _visit(name: str, module: nn.Module, excluded: set[nn.Module], seen: set[nn.Module], report: FuseReport) -> None:
    if module in seen:
        return
    seen.add(module)
    if module in excluded:
        report.skipped.append(FuseEntry(name, type(module).__name__, "excluded"))
        return
    _fuse_one(name, module, excluded, report)
    if isinstance(module, FusedModule):
        seen.update(module.absorbed())
    for child_name, child in module.named_children():
        _visit(f"{name}.{child_name}" if name else child_name, child, excluded, seen, report)


def _fuse_one(name: str, module: nn.Module, excluded: set[nn.Module], report: FuseReport) -> None:
    """Changes the class of ``module`` if it can be fused, and enters it into ``report`` if that was to be expected."""
    stock, recipe = type(module), find_recipe(module)
    expected = holds_convolution_and_norm(module)
    class_name = getattr(stock, "stock_class", stock).__name__
    if recipe is not None:
        expected |= not isinstance(module, nn.Sequential)
        _set_class(module, fused_class(recipe.mixin, stock))
    reason: str | None = "its forward is none that fuse knows"
    if isinstance(module, FusedModule):
        reason = _objection(module, excluded)
        if reason is None:
            part = module.unfused_part()
            entries, text = (report.fused, module.fused_parts()) if part is None else (report.partial, part)
            entries.append(FuseEntry(name, class_name, text))
            return
    if recipe is not None:
        _set_class(module, stock)
    if expected and reason is not None:
        report.skipped.append(FuseEntry(name, class_name, reason))


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
