"""The cases: every op, forward and backward, in every type, on every tile of its short list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_resnet.backends import triton as backend
from fused_resnet.backends.arguments import Activation, BatchNorm, Conv, MaxPool
from fused_resnet.backends.triton import configs, launch
from fused_resnet.backends.triton.channel_statistics import channel_statistics

from .driver import use_target
from .resources import resources

__all__ = ["TYPES", "compile_all"]

# Name -> (type of the tensors, how float32 is multiplied).
TYPES = {
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "float32": (torch.float32, "ieee"),
}
_RELU = Activation("relu")
_POOL = MaxPool((3, 3), (2, 2), (1, 1))


def _image(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(32, channels, size, size, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def _vector(channels: int) -> Tensor:
    return torch.empty(channels, device="meta")


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(*(_vector(channels) for _ in range(4)), 1e-5)


def _products(dtype: torch.dtype, kernel: int, stride: int) -> None:
    x = _image(256, 28, dtype)
    weight = torch.empty(128, 256, kernel, kernel, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    conv = Conv((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
    y, mean, _ = backend.bn_act_conv(x, _norm(256), _RELU, weight, None, conv, True)
    backend.bn_act_conv_backward(
        y, _vector(128), _vector(128), x, _norm(256), _RELU, weight, y, mean, conv, (True, True, False)
    )
    backend.conv_bn_add_act(x, weight, None, _norm(128), y, _RELU, conv)


def _pointwise(dtype: torch.dtype) -> None:
    x, bn = _image(256, 28, dtype), _norm(256)
    backend.bn_add_act(x, bn, x, bn, _RELU)
    backend.bn_add_act_backward(x, x, bn, x, bn, _RELU)
    backend.bn_add_act(x.contiguous(), bn, None, None, _RELU)
    backend.bn_add_act_backward(x.contiguous(), x.contiguous(), bn, None, None, _RELU)
    out, indices = backend.bn_act_max_pool(x, bn, _RELU, _POOL)
    backend.bn_act_max_pool_backward(out, indices, x, bn, _RELU, _POOL)
    channel_statistics(x)


@contextmanager
def _setting(precision: str, pointwise: Any, product: Any) -> Iterator[None]:
    with (
        mock.patch.object(configs, "POINTWISE", (pointwise,)),
        mock.patch.object(configs, "PRODUCT", {2: (product,), 4: (product,)}),
        mock.patch.object(launch, "forced_precision", precision),
        mock.patch.dict("os.environ", FUSED_RESNET_TRITON_CONV="implicit_product"),
    ):
        yield


def _cases(ci: bool) -> Iterator[tuple[str, Any, Any, Callable[[torch.dtype], None]]]:
    """Name of the type, a pointwise tile, a product tile, and what to run.

    Each tile compiles in the type it is for; what a second type or geometry adds, with the first tile alone.
    """
    for name, (dtype, _) in TYPES.items():
        products = configs.PRODUCT[dtype.itemsize]
        for pointwise in configs.POINTWISE[: 1 if ci or name != "bfloat16" else None]:
            if name != "tf32":  # pointwise kernels multiply nothing
                yield name, pointwise, products[0], _pointwise
        for product in products[: 1 if ci or name == "float16" else None]:
            yield name, configs.POINTWISE[0], product, lambda dtype: _products(dtype, 1, 1)
        if ci:
            return
        yield name, configs.POINTWISE[0], products[0], lambda dtype: _products(dtype, 3, 2)


def compile_all(target: str, ci: bool) -> list[dict[str, Any]]:
    """Compiles the matrix, or CI's part of it, for one target: a row a kernel."""
    use_target(target)
    rows: dict[str, dict[str, Any]] = {}

    def compile_instead(kernel: Any, programs: int, device: Any, config: Any, *args: Any, **constants: Any) -> None:
        start = time.perf_counter()
        options = {"num_warps": config.warps, "num_stages": config.stages}
        compiled = kernel.warmup(*args, grid=(programs,), **constants, **config.tile, **options)
        if compiled.hash not in rows:
            rows[compiled.hash] = {
                "target": target,
                "kernel": kernel.fn.__name__,
                "type": name,
                "tile": "x".join(map(str, config.tile.values())),
                **resources(compiled),
                "seconds": round(time.perf_counter() - start, 2),
            }

    for name, pointwise, product, run in _cases(ci):
        dtype, precision = TYPES[name]
        with _setting(precision, pointwise, product), mock.patch.object(launch, "run", compile_instead):
            run(dtype)
    return list(rows.values())
