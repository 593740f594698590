"""Functions of a Triton backend against the reference in float64, on small shapes with tails in every direction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from support.cases import batch_norm, image
from support.oracle import relative_error
from torch import Tensor

from fused_resnet.backends import reference
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool

__all__ = ["ALIGNED", "CASES", "POINTWISE", "PRODUCTS", "check", "function_of", "tensors"]

# Relative error allowed: sums of some hundred terms, each rounded to the type, as stock has it too.
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1.2e-3}
_POOL = MaxPool((3, 3), (2, 2), (1, 1))
_RELU, _SILU = Activation("relu"), Activation("silu")


def _bn_add_act(dtype: torch.dtype) -> tuple[Any, ...]:
    return image(3, 67, 9, 7, dtype=dtype), batch_norm(67), image(3, 67, 9, 7, dtype=dtype), batch_norm(67), _SILU


def _bn_add_act_backward(dtype: torch.dtype) -> tuple[Any, ...]:
    return image(3, 67, 9, 7, dtype=dtype), *_bn_add_act(dtype)


def _contiguous(dtype: torch.dtype) -> tuple[Any, ...]:
    images = [image(3, 70, 9, 7, dtype=dtype, layout="contiguous") for _ in range(3)]
    return images[0], images[1], batch_norm(70), images[2], None, _SILU


def _max_pool(dtype: torch.dtype) -> tuple[Any, ...]:
    # Few different values, so that windows have ties.
    return (
        torch.randint(-3, 3, (2, 19, 9, 11)).to(dtype).contiguous(memory_format=torch.channels_last),
        None,
        _RELU,
        _POOL,
    )


def _max_pool_backward(dtype: torch.dtype) -> tuple[Any, ...]:
    x = image(2, 19, 9, 11, dtype=dtype)
    out, indices = reference.bn_act_max_pool(x, batch_norm(19), _SILU, _POOL)
    return image(*out.shape, dtype=dtype), indices, x, batch_norm(19), _SILU, _POOL


def _conv_arguments(dtype: torch.dtype, shape: tuple[int, ...], k: int, kernel: int, conv: Conv) -> tuple[Any, ...]:
    fan_in = shape[1] // conv.groups * kernel**2
    weight = (torch.randn(k, shape[1] // conv.groups, kernel, kernel) * fan_in**-0.5).to(dtype)
    # The bias of the norm is far from 0, so that padding that is not 0 after the activation shows.
    bn = batch_norm(shape[1])
    bn = bn._replace(bias=bn.bias + 1)
    return image(*shape, dtype=dtype), bn, _SILU, weight, conv


ONE_BY_ONE = ((2, 21, 23, 13), 34, 1, Conv((1, 1), (0, 0), (1, 1), 1))
MULTIPLES_OF_16 = ((2, 16, 23, 13), 32, 1, Conv((1, 1), (0, 0), (1, 1), 1))  # tiles of configs.PRODUCT
ONE_TILE = ((1, 3, 2, 2), 5, 1, Conv((1, 1), (0, 0), (1, 1), 1))  # many whole numbers are 1
STRIDED = ((2, 20, 9, 8), 34, 3, Conv((2, 2), (1, 1), (1, 1), 1))
# Of three phases of rows, each is reached by one tap, in another order; of two of columns, one by all, one by none.
PHASES = ((1, 5, 11, 8), 7, 3, Conv((3, 2), (1, 2), (2, 2), 1))
GROUPED = ((1, 12, 8, 7), 8, 3, Conv((1, 1), (2, 2), (2, 2), 2))


def _conv(*geometry: Any) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        x, bn, act, weight, conv = _conv_arguments(dtype, *geometry)
        return x, bn, act, weight, torch.randn(weight.shape[0]).to(dtype), conv, True

    return arguments


def _conv_backward(*geometry: Any) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        x, bn, act, weight, conv = _conv_arguments(dtype, *geometry)
        y, mean, _ = reference.bn_act_conv(x, bn, act, weight, None, conv, True)
        g_mean, g_var = torch.randn_like(mean), torch.randn_like(mean)
        return image(*y.shape, dtype=dtype), g_mean, g_var, x, bn, act, weight, y, mean, conv, (True, True, True)

    return arguments


def _inference(*geometry: Any) -> Callable[[torch.dtype], tuple[Any, ...]]:
    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        x, _, act, weight, conv = _conv_arguments(dtype, *geometry)
        k = weight.shape[0]
        size = conv.output_size((x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3]))
        residual = image(x.shape[0], k, *size, dtype=dtype)
        return x, weight, torch.randn(k).to(dtype), batch_norm(k), residual, act, conv

    return arguments


def _channel_statistics(dtype: torch.dtype) -> tuple[Any, ...]:
    return (image(3, 67, 9, 7, dtype=dtype),)


def _output_gradient(dtype: torch.dtype) -> tuple[Any, ...]:
    g_y, y = image(3, 67, 9, 7, dtype=dtype), image(3, 67, 9, 7, dtype=dtype)
    # Of the size of m, so that their shares weigh as much as g_y.
    return g_y, torch.randn(67) * 189, torch.randn(67) * 189, y, reference.channel_statistics(y)[0]


# Name -> the function of a backend and its arguments in a type.
CASES: dict[str, tuple[str, Callable[[torch.dtype], tuple[Any, ...]]]] = {
    "bn_add_act": ("bn_add_act", _bn_add_act),
    "bn_add_act_backward": ("bn_add_act_backward", _bn_add_act_backward),
    "bn_add_act_backward, contiguous": ("bn_add_act_backward", _contiguous),
    "bn_act_max_pool": ("bn_act_max_pool", _max_pool),
    "bn_act_max_pool_backward": ("bn_act_max_pool_backward", _max_pool_backward),
    "bn_act_conv, 1x1": ("bn_act_conv", _conv(*ONE_BY_ONE)),
    "bn_act_conv, aligned": ("bn_act_conv", _conv(*MULTIPLES_OF_16)),
    "bn_act_conv, one tile": ("bn_act_conv", _conv(*ONE_TILE)),
    "bn_act_conv, strided": ("bn_act_conv", _conv(*STRIDED)),
    "bn_act_conv, grouped": ("bn_act_conv", _conv(*GROUPED)),
    "bn_act_conv_backward, 1x1": ("bn_act_conv_backward", _conv_backward(*ONE_BY_ONE)),
    "bn_act_conv_backward, aligned": ("bn_act_conv_backward", _conv_backward(*MULTIPLES_OF_16)),
    "bn_act_conv_backward, strided": ("bn_act_conv_backward", _conv_backward(*STRIDED)),
    "bn_act_conv_backward, phases": ("bn_act_conv_backward", _conv_backward(*PHASES)),
    "bn_act_conv_backward, grouped": ("bn_act_conv_backward", _conv_backward(*GROUPED)),
    "conv_bn_add_act": ("conv_bn_add_act", _inference(*STRIDED)),
    "conv_bn_add_act, aligned": ("conv_bn_add_act", _inference(*MULTIPLES_OF_16)),
    "channel_statistics": ("channel_statistics", _channel_statistics),
    "output_gradient": ("output_gradient", _output_gradient),
}
# By what runs: matrix products, whose tiles are configs.PRODUCT, and passes, whose tiles are configs.POINTWISE.
PRODUCTS = [c for c, (f, _) in CASES.items() if f in ("bn_act_conv", "bn_act_conv_backward", "conv_bn_add_act")]
POINTWISE = [c for c in CASES if c not in PRODUCTS]
ALIGNED = [c for c in PRODUCTS if c.endswith("aligned")]


def function_of(module: Any, name: str) -> Callable[..., Any]:
    """A function of a backend; what is no op of its own lies in the backend's module of that name."""
    if module is reference and name == "output_gradient":
        return reference.statistics_backward
    found = getattr(module, name)
    return getattr(found, name) if isinstance(found, ModuleType) else found


def tensors(value: Any) -> Iterator[Tensor]:
    """Those of an argument or a result, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def _wide(a: Any) -> Any:
    if isinstance(a, BatchNorm):
        return BatchNorm(*(_wide(v) for v in a))
    return a.double() if isinstance(a, Tensor) and a.is_floating_point() else a


def check(backend: Any, case: str, dtype: torch.dtype) -> list[Tensor]:
    """Runs a case; raises AssertionError where a result differs from the reference's in float64, and returns all."""
    function, arguments = CASES[case]
    torch.manual_seed(0)
    args = arguments(dtype)
    results = []
    for module, inputs in ((backend, args), (reference, tuple(map(_wide, args)))):
        results.append(list(tensors(function_of(module, function)(*inputs))))
    # Statistics are summed in float32, of y in whatever type.
    allowed = ALLOWED[torch.float32 if function == "channel_statistics" else dtype]
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        # The mean of y may cancel: its error counts against the size of y.
        least = results[1][0].square().mean().sqrt().item() if i and function == "bn_act_conv" else 0.0
        error = relative_error(got, want, least)
        assert error <= allowed, f"{case}: result {i} differs from float64 by {error:.2g}"
    return results[0]
