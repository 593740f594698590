"""Layers of conv_bn_add_act one after another as one native call; what does not change is unpacked beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from ..arguments import MaxPool, PreparedLayer
from . import native
from .engine import Engine
from .packed_filters import packed_filter

__all__ = ["PreparedConvs", "prepare_convs"]


class PreparedConvs:
    """A call of layers, each with its :class:`Engine`."""

    def __init__(self, given: int, layers: Sequence[PreparedLayer], engines: Sequence[Engine]) -> None:
        self._packed = [packed_filter(layer.weight, engine) for layer, engine in zip(layers, engines, strict=True)]
        self._output_shape, self._dtype = _output_shape(engines[-1], layers[-1].pool), layers[0].x.dtype
        arguments = [
            (
                engine.arguments,
                native.activation(layer.activation),
                layer.weight.data_ptr(),
                packed.data_ptr(),
                native.pointer(layer.bias),
                native.norm(layer.bn, self._dtype)[1],
                _pool_shape(engine, layer.pool),
                layer.x_value,
                -1 if layer.residual_value is None else layer.residual_value,
                _cpu.filter_fingerprint(engine.arguments, layer.weight.data_ptr()),
            )
            for layer, engine, packed in zip(layers, engines, self._packed, strict=True)
        ]
        self._convs = _cpu.PreparedConvs(given, arguments)

    def __call__(self, *given: Tensor) -> Tensor | None:
        """The last layer's output [N, K, OH, OW]; None where a filter is not the one that was packed.

        ``given`` are values as the layers number them, [N, C, H, W] in channels_last.
        """
        out = native.empty_image(self._output_shape, self._dtype)
        return out if self._convs.run([t.data_ptr() for t in given], out.data_ptr()) else None


def prepare_convs(given: int, layers: Sequence[PreparedLayer]) -> PreparedConvs | None:
    """``layers`` as one call; None where they compute nothing, or numbers would have to be converted in each call."""
    engines = [engine for a in layers if (engine := Engine.of(a.x, a.weight, a.conv, keeps_filter=True)) is not None]
    dtype = layers[0].x.dtype
    vectors = [v for a in layers for v in a.bn[:4] if v is not None]
    if dtype not in (torch.float32, torch.float64) or len(engines) < len(layers):
        return None
    if not all(v.dtype == dtype and v.is_contiguous() for v in vectors):
        return None
    if any(engine.weight.data_ptr() != a.weight.data_ptr() for engine, a in zip(engines, layers, strict=True)):
        return None  # a filter that is not dense
    return PreparedConvs(given, layers, engines)


def _output_shape(engine: Engine, pool: MaxPool | None) -> tuple[int, int, int, int]:
    n, k, *size = engine.output_shape
    height, width = size if pool is None else pool.output_size((size[0], size[1]))
    return n, k, height, width


def _pool_shape(engine: Engine, pool: MaxPool | None) -> tuple[int, ...]:
    """The fields of PoolShape in csrc/shapes.h; zeros where there is no pool."""
    if pool is None:
        return (0,) * 12
    n, k, height, width = engine.output_shape
    return n, height, width, k, *_output_shape(engine, pool)[2:], *pool.kernel_size, *pool.stride, *pool.padding
