"""timm's models built on residual blocks, made small without losing a structure, and fused against stock in float64."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import timm
import timm.models.regnet
import torch
from support.oracle import relative_error
from torch import Tensor, nn

import fused_resnet

__all__ = ["FAMILIES", "Outcome", "architectures", "check", "check_model", "small_model"]

FAMILIES = (
    *("resnet", "resnetv2", "regnet", "byobnet", "byoanet", "resnest", "res2net", "senet", "sknet", "tresnet"),
    *("cspnet", "vovnet", "hrnet", "dla", "selecsls", "hgnet", "nfnet"),
)
# A quarter of the width of those that would need 20 GB otherwise.
NARROWED: dict[str, dict[str, float]] = {
    "regnety_1280": {"w0": 112, "wa": 40.2, "group_size": 66},
    "regnety_2560": {"w0": 160, "wa": 57.7, "group_size": 93},
}
TOLERANCE = 1e-6  # relative, in float64: a norm over two values amplifies the last bit


class Outcome(NamedTuple):
    """What became of one architecture: modules fused, in part, left; the largest error by mode, relative."""

    fused: int
    partial: int
    skipped: int
    batch_norms: int
    errors: dict[str, float]


def architectures(family: str) -> list[str]:
    """The names of a family's models, without those that timm keeps for another's sake."""
    return list(timm.list_models(module=family))


@contextlib.contextmanager
def _uninitialised() -> Iterator[None]:
    """Within, models are built without filling their parameters: most of the time that it takes."""
    names = ("kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "normal_", "trunc_normal_", "uniform_")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch(f"torch.nn.init.{name}", lambda tensor, *_, **__: tensor))
        yield


def small_model(name: str, shorten: bool = True, **kwargs: Any) -> nn.Module:
    """A model with each run of equal blocks cut to one, or two where the first of a stage is another.

    ``kwargs`` go to its constructor.
    """
    with _uninitialised(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name, num_classes=5, **NARROWED.get(name, {}), **kwargs)
    for stage in list(model.modules()):
        if shorten and isinstance(stage, nn.Sequential | timm.models.regnet.RegStage):
            _shorten(stage)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                _fill(module, parameter, generator)
    return model


def _shorten(stage: nn.Module) -> None:
    kept: list[nn.Module] = []
    texts: set[str] = set()
    for child in stage.children():
        text = repr(child)
        if not any(True for _ in child.children()) or text not in texts:
            kept.append(child)
        texts.add(text)
    for name, child in list(stage.named_children()):
        if child not in kept:
            del stage._modules[name]


def _fill(module: nn.Module, parameter: Tensor, generator: torch.Generator) -> None:
    fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
    mean, std = (0.0, (2 / fan_in) ** 0.5) if parameter.dim() > 1 else (0.0, 0.2)
    if parameter is getattr(module, "weight", None) and parameter.dim() == 1:
        mean = 1.0
    parameter.normal_(mean, std, generator=generator)


def check(name: str) -> Outcome:
    """Fuses a small model, and compares outputs, gradients and buffers with stock's in float64, in both modes.

    Raises AssertionError where they differ.
    """
    stock = small_model(name).double()
    x = _images(stock)
    if x is None:  # a forward that counts on the number of its blocks
        stock = small_model(name, shorten=False).double()
        x = _images(stock)
    assert x is not None, "runs for no image size tried"
    return check_model(name, stock, x)


def check_model(name: str, stock: nn.Module, x: Tensor) -> Outcome:
    """As :func:`check`, for a model in float64 that takes ``x`` and returns a tensor."""
    model = copy.deepcopy(stock)
    report = fused_resnet.fuse(model)
    errors = {}
    for mode in ("train", "eval"):
        errors[mode] = max(
            _worst(name, mode, _step(model, x, mode), _step(stock, x, mode)),
            _worst(name, mode, _buffers(model), _buffers(stock)),
        )
    batch_norms = sum(isinstance(m, nn.BatchNorm2d) for m in stock.modules())
    return Outcome(len(report.fused), len(report.partial), len(report.skipped), batch_norms, errors)


def _images(model: nn.Module) -> Tensor | None:
    """Two images [2, 3, S, S] of the smallest size that the model takes."""
    model.eval()
    for size in (64, 128, 224, 256):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with contextlib.suppress(RuntimeError, AssertionError, IndexError), torch.no_grad():
            model(x)
            return x
    return None


def _step(model: nn.Module, x: Tensor, mode: str) -> dict[str, Tensor]:
    model.train(mode == "train")
    model.zero_grad()
    torch.manual_seed(0)  # for dropout, which both draw in the same order
    leaf = x.clone().requires_grad_()
    output = model(leaf)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weight).sum().backward()
    with torch.no_grad():
        torch.manual_seed(0)
        inferred = model(x) if mode == "eval" else output
    gradients = {f"grad of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output, "inferred": inferred, "grad of x": leaf.grad} | gradients  # type: ignore[dict-item]


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers())


def _worst(name: str, mode: str, got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys(), f"{name}: {got.keys() ^ want.keys()}"
    largest = max(
        (t.double().norm().item() / t.numel() ** 0.5 for n, t in want.items() if n.startswith("grad")), default=0.0
    )
    worst = 0.0
    for key, tensor in want.items():
        # Some gradients are zero but for rounding: they count against the largest.
        error = relative_error(got[key].detach(), tensor.detach(), 1e-6 * largest if key.startswith("grad") else 0.0)
        assert error <= TOLERANCE, f"{name}, {mode}: {key} is off by {error:.2g}"
        worst = max(worst, error)
    return worst
