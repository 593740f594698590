"""Whole modules against their stock twins: the same step, and every tensor that comes out of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from support.oracle import relative_error
from torch import Tensor, nn

import fused_resnet

__all__ = [
    "ATOL",
    "Step",
    "assert_buffers_equal",
    "assert_buffers_match",
    "assert_parity",
    "classify",
    "errors",
    "randomise_batch_norms",
    "results",
    "smooth",
    "stock_twin",
    "weighted_sum",
    "with_inference",
]

ATOL = 1e-6

Step = Callable[[nn.Module], dict[str, Tensor]]


def stock_twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in plain PyTorch."""
    twin = copy.deepcopy(model)
    fused_resnet.unfuse(twin)
    return twin


def results(model: nn.Module, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``outputs``, and the gradients and buffers of ``model``, by name."""
    gradients = {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {name: t.detach() for name, t in outputs.items()} | gradients | buffers


def classify(x: Tensor, target: Tensor) -> Step:
    """A step of a classifier on ``x`` [N, C, H, W] and ``target`` [N]: forward, cross entropy, backward."""

    def step(model: nn.Module) -> dict[str, Tensor]:
        output = model(x.to(next(model.parameters()).dtype))
        loss = F.cross_entropy(output, target)
        loss.backward()
        return results(model, {"output": output, "loss": loss})

    return step


def weighted_sum(x: Tensor) -> Step:
    """A step on ``x`` whose loss weights every element of the output differently, with the gradient of ``x`` too."""

    def step(model: nn.Module) -> dict[str, Tensor]:
        leaf = x.to(next(model.parameters()).dtype, copy=True).requires_grad_()
        output = model(leaf)
        weight = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
        (output * weight).sum().backward()
        assert leaf.grad is not None
        return results(model, {"output": output, "grad of x": leaf.grad})

    return step


def with_inference(step: Step, x: Tensor) -> Step:
    """``step``, and then the output for ``x`` where no gradient is asked for."""

    def both(model: nn.Module) -> dict[str, Tensor]:
        tensors = step(model)
        with torch.no_grad():
            return tensors | {"output without gradient": model(x.to(next(model.parameters()).dtype))}

    return both


def assert_parity(model: nn.Module, step: Step, factor: float = 2.0) -> float:
    """Every tensor of ``step`` is as near to float64 for the fused ``model`` as for its stock twin.

    ``error <= factor * error of stock + 1e-6``, see :func:`errors`. Returns the largest factor met.
    """
    found = errors(model, step)
    for name, (ours, stock) in found.items():
        assert ours <= factor * stock + ATOL, f"{name}: error {ours:.3g}, stock has {stock:.3g}"
    return max((ours - ATOL) / max(stock, ATOL) for ours, stock in found.values())


def errors(model: nn.Module, step: Step) -> dict[str, tuple[float, float]]:
    """Relative errors against float64 of every tensor of ``step``, of the fused ``model`` and of its stock twin.

    Stock runs in both memory formats and the larger error counts. A tensor of a few elements, whose error may be small
    by luck, is held to that of the output too. Integers must be equal.
    """
    twin = stock_twin(model)
    reference = step(copy.deepcopy(twin).double())
    largest = max(want.double().norm().item() for name, want in reference.items())

    def error(name: str, got: Tensor) -> float:
        want = reference[name].double()
        # Some gradients are zero but for rounding: that of a convolution's bias before a batch norm, for one.
        return ((got.double() - want).norm() / max(want.norm().item(), 1e-7 * largest)).item()

    allowed = dict.fromkeys(reference, 0.0)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        stock = step(copy.deepcopy(twin).to(memory_format=memory_format))
        assert stock.keys() == reference.keys()
        allowed = {name: max(allowed[name], error(name, t)) for name, t in stock.items()}
    ours = step(model)
    assert ours.keys() == reference.keys()
    found = {}
    for name, want in reference.items():
        got = ours[name]
        assert got.shape == want.shape, f"{name}: expected shape {list(want.shape)}, got {list(got.shape)}"
        if want.is_floating_point():
            stock_error = max(allowed[name], allowed["output"] if want.numel() <= 16 else 0.0)
            found[name] = (error(name, got), stock_error)
        else:
            assert torch.equal(got, want), f"{name}: expected {want}, got {got}"
    return found


def assert_buffers_equal(got: nn.Module | Iterable[Tensor], want: nn.Module | Iterable[Tensor]) -> None:
    """Buffers are the same to the bit."""
    for a, b in zip(_buffers(got), _buffers(want), strict=True):
        assert torch.equal(a, b), f"expected {b}, got {a}"


def assert_buffers_match(got: nn.Module, want: nn.Module) -> None:
    """Running statistics agree to 1e-6, counts exactly."""
    for a, b in zip(_buffers(got), _buffers(want), strict=True):
        assert a.dtype == b.dtype
        if a.is_floating_point():
            assert relative_error(a, b) <= 1e-6
        else:
            assert torch.equal(a, b)


def _buffers(source: nn.Module | Iterable[Tensor]) -> Iterable[Tensor]:
    return source.buffers() if isinstance(source, nn.Module) else source


def smooth(model: nn.Module) -> nn.Module:
    """``model`` with SiLU for every ``relu``, and average for max pooling.

    Where a ReLU's argument lies within rounding of zero, float32 and float64 may take different sides of it, and so
    with two candidates of a max pool. Gradients then differ by far more than rounding, in stock as in fused.
    """
    for module in model.modules():
        if isinstance(getattr(module, "relu", None), nn.ReLU):
            module.relu = nn.SiLU()
        if isinstance(getattr(module, "maxpool", None), nn.MaxPool2d):
            module.maxpool = nn.AvgPool2d(3, stride=2, padding=1)
    return model


def randomise_batch_norms(model: nn.Module) -> nn.Module:
    """``model`` with random affine parameters, negative weights among them, and running statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for parameter, mean in ((module.weight, 1.0), (module.bias, 0.0)):
                if parameter is not None:
                    nn.init.normal_(parameter, mean, 0.5)
            if module.running_mean is not None:
                module.running_mean.normal_(0.0, 0.5)
                module.running_var.uniform_(0.5, 2.0)
    return model
