"""The cases: every op, forward and backward, in every type, on every tile and with every activation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import ACTIVATIONS, Activation, BatchNorm, Conv, MaxPool
from fused_resnet.backends.triton import configs, launch
from fused_resnet.backends.triton.channel_statistics import channel_statistics
from fused_resnet.backends.triton.output_gradient import output_gradient

from .driver import TARGETS, use_target
from .resources import resources

__all__ = ["TYPES", "compile_all"]

# Name -> (type of the tensors, how float32 is multiplied).
TYPES = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}
_RELU, _GELU = Activation("relu"), Activation("gelu")
_POOL = MaxPool((3, 3), (2, 2), (1, 1))


def _image(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(32, channels, size, size, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def _vector(channels: int) -> Tensor:
    return torch.empty(channels, device="meta")


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(*(_vector(channels) for _ in range(4)), 1e-5)


def _filter(k: int, c: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(k, c, size, size, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def _products(dtype: torch.dtype, kernel: int, stride: int, act: Activation = _RELU) -> None:
    x, weight = _image(256, 28, dtype), _filter(128, 256, kernel, dtype)
    conv = Conv((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    y, mean, _ = backend.bn_act_conv(x, _norm(256), act, weight, None, conv, True)
    backend.bn_act_conv_backward(
        y, _vector(128), _vector(128), x, _norm(256), act, weight, y, mean, conv, (True, True, False)
    )
    backend.conv_bn_add_act(x, weight, None, _norm(128), y, act, conv)


def _bare_products(dtype: torch.dtype) -> None:
    """No norm of x, no statistics, a bias, groups."""
    x, weight, conv = _image(256, 28, dtype), _filter(128, 128, 3, dtype), Conv((1, 1), (1, 1), (1, 1), 2)
    y, mean, _ = backend.bn_act_conv(x, None, _RELU, weight, _vector(128), conv, False)
    backend.bn_act_conv_backward(y, None, None, x, None, _RELU, weight, y, mean, conv, (True, True, True))
    backend.conv_bn_add_act(x, weight, _vector(128), None, None, _RELU, conv)


def _unaligned_products(dtype: torch.dtype) -> None:
    """Channels of which no pixel but the first begins at a multiple of 16 bytes."""
    x, weight, conv = _image(67, 28, dtype), _filter(35, 67, 3, dtype), Conv((1, 1), (1, 1), (1, 1), 1)
    y, mean, _ = backend.bn_act_conv(x, _norm(67), _GELU, weight, None, conv, True)
    vectors = _vector(35), _vector(35)
    backend.bn_act_conv_backward(y, *vectors, x, _norm(67), _GELU, weight, y, mean, conv, (True, True, False))
    backend.conv_bn_add_act(x, weight, None, _norm(35), y, _GELU, conv)


def _ones(dtype: torch.dtype) -> None:
    """One pixel of one channel: Triton compiles in every whole number that is 1, which then is no tensor."""
    x, weight, bn = torch.empty(1, 1, 1, 1, dtype=dtype, device="meta"), _filter(1, 1, 1, dtype), _norm(1)
    conv = Conv((1, 1), (0, 0), (1, 1), 1)
    y, mean, _ = backend.bn_act_conv(x, bn, _RELU, weight, None, conv, True)
    backend.bn_act_conv_backward(y, mean, mean, x, bn, _RELU, weight, y, mean, conv, (True, True, False))
    backend.conv_bn_add_act(x, weight, None, bn, y, _RELU, conv)
    backend.bn_add_act(x, bn, x, bn, _RELU)
    backend.bn_add_act_backward(x, x, bn, x, bn, _RELU)
    out, indices = backend.bn_act_max_pool(x, bn, _RELU, _POOL)
    backend.bn_act_max_pool_backward(out, indices, x, bn, _RELU, _POOL)
    channel_statistics(x)
    output_gradient(x, mean, mean, x, mean)


def _pointwise(dtype: torch.dtype, act: Activation = _RELU) -> None:
    x, bn = _image(256, 28, dtype), _norm(256)
    backend.bn_add_act(x, bn, x, bn, act)
    backend.bn_add_act_backward(x, x, bn, x, bn, act)
    backend.bn_add_act(x.contiguous(), bn, None, None, act)
    backend.bn_add_act_backward(x.contiguous(), x.contiguous(), bn, None, None, act)
    out, indices = backend.bn_act_max_pool(x, bn, act, _POOL)
    backend.bn_act_max_pool_backward(out, indices, x, bn, act, _POOL)
    channel_statistics(x)
    output_gradient(x, _vector(256), _vector(256), x, _vector(256))


@contextmanager
def _setting(precision: str, pointwise: Any, product: Any) -> Iterator[None]:
    with (
        mock.patch.object(configs, "POINTWISE", (pointwise,)),
        mock.patch.object(configs, "PRODUCT", {2: (product,), 4: (product,)}),
        mock.patch.object(configs, "UNALIGNED", {2: (product,), 4: (product,)}),
        mock.patch.object(launch, "forced_precision", precision),
        mock.patch.dict("os.environ", FUSED_RESNET_TRITON_CONV="implicit_product"),
    ):
        yield


def _cases() -> Iterator[tuple[str, str, Any, Any, Callable[[torch.dtype], None]]]:
    """A name, the name of a type, a pointwise tile, a product tile, and what to run.

    Each tile compiles in each type with relu, that of a product with GELU, too. What a geometry adds to products, and
    the other activations to all, with the first tile alone.
    """
    for name, (dtype, _) in TYPES.items():
        first, products = configs.POINTWISE[0], configs.PRODUCT[dtype.itemsize]
        if name != "tf32":  # pointwise kernels multiply nothing
            for pointwise in configs.POINTWISE:
                yield "relu", name, pointwise, products[0], _pointwise
                if name == "bfloat16":
                    yield "gelu", name, pointwise, products[0], partial(_pointwise, act=_GELU)
        for product in products:
            yield "relu", name, first, product, partial(_products, kernel=1, stride=1)
            yield "gelu", name, first, product, partial(_products, kernel=1, stride=1, act=_GELU)
        for product in configs.UNALIGNED[dtype.itemsize]:
            yield "unaligned", name, first, product, _unaligned_products
        for stride in (1, 2):
            yield "relu", name, first, products[0], partial(_products, kernel=3, stride=stride)
        yield "relu", name, first, products[0], _bare_products
        if name == "bfloat16":
            yield "ones", name, first, configs.UNALIGNED[dtype.itemsize][0], _ones
        for act in map(Activation, sorted({*ACTIVATIONS} - {"relu", "gelu"})):
            if name != "tf32":
                yield act.name, name, first, products[0], partial(_pointwise, act=act)
            yield act.name, name, first, products[0], partial(_products, kernel=1, stride=1, act=act)


def compile_all(target: str, every: int = 1) -> list[dict[str, Any]]:
    """Compiles the matrix for one target, or of ``every`` so many cases the one whose turn it is: a row a kernel."""
    use_target(target)
    rows: dict[tuple[str, ...], dict[str, Any]] = {}  # a kernel may be that of several types and cases

    def compile_instead(kernel: Any, programs: int, device: Any, config: Any, *args: Any, **constants: Any) -> None:
        if kind["case"] in ACTIVATIONS and kind["case"] != "relu" and "ACTIVATION" not in constants:
            return  # a kernel without an activation: relu's case has it
        start = time.perf_counter()
        options = launch.options(config, hip=TARGETS[target].backend == "hip")
        compiled = kernel.warmup(*args, grid=(programs,), **constants, **config.tile, **options)
        key = (compiled.hash, *kind.values())
        if key not in rows:
            rows[key] = {
                "target": target,
                "kernel": kernel.fn.__name__,
                **kind,
                "tile": "x".join(map(str, config.tile.values())),
                **resources(compiled, target, config.tile.get("BM", 0)),
                "seconds": round(time.perf_counter() - start, 2),
            }

    turn = list(TARGETS).index(target) % every
    for case, name, pointwise, product, run in islice(_cases(), turn, None, every):
        kind = {"type": name, "case": case}
        dtype, precision = TYPES[name]
        with _setting(precision, pointwise, product), mock.patch.object(launch, "run", compile_instead):
            run(dtype)
    return list(rows.values())
