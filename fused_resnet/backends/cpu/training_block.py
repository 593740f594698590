"""Layers of bn_act_conv one after another, and bn_add_act behind them, in training: each way one native call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from ..arguments import RunningStatistics, TrainedLayer
from . import native
from .engine import Engine

__all__ = ["TrainingBlock", "prepare_training"]


class TrainingBlock:
    """A block of layers, each with its :class:`Engine`."""

    def __init__(self, layers: Sequence[TrainedLayer], engines: Sequence[Engine], residual: int | None) -> None:
        self._dtype, self._filters = layers[0].x.dtype, [engine.weight for engine in engines]
        self._shapes = [engine.output_shape for engine in engines]
        self._channels = [shape[1] for shape in self._shapes]
        arguments = [
            (
                engine.arguments,
                engine.weight_gradient_arguments(layer.conv, self._dtype)[1],
                native.activation(layer.activation),
                layer.weight.data_ptr(),
                layer.bn_weight.data_ptr(),
                layer.bn_bias.data_ptr(),
                layer.eps,
                _running(layer.running),
                layer.x_value,
            )
            for layer, engine in zip(layers, engines, strict=True)
        ]
        self._block = _cpu.TrainingBlock(arguments, -1 if residual is None else residual)

    @property
    def is_current(self) -> bool:
        """Whether the instruction set is the one that the algorithms were chosen for."""
        return self._block.is_current

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """out [N, K, OH, OW], and what backward needs: statistics [2 sum(K)], raw outputs [N, K, OH, OW] of the layers.

        x is [N, C, H, W] in channels_last. Moves the running statistics.
        """
        raw = [native.empty_image(shape, self._dtype) for shape in self._shapes]
        out = native.empty_image(self._shapes[-1], self._dtype)
        statistics = torch.empty(2 * sum(self._channels), dtype=self._dtype)
        self._block.forward(x.data_ptr(), [t.data_ptr() for t in raw], statistics.data_ptr(), out.data_ptr())
        return out, statistics, raw

    def backward(
        self,
        g_out: Tensor,  # [N, K, OH, OW]
        x: Tensor,  # [N, C, H, W]
        statistics: Tensor,
        raw: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
        """g_x [N, C, H, W], and of each layer g_weight [K, C / groups, R, S] and (g_bn_weight, g_bn_bias), [K] each."""
        g_x = native.empty_like(x)
        g_weights = [native.empty_like(weight) for weight in self._filters]
        g_bn = torch.empty(4 * sum(self._channels), dtype=self._dtype)
        memory = native.empty((self._block.backward_bytes,), (1,), torch.uint8)
        self._block.backward(
            g_out.data_ptr(),
            x.data_ptr(),
            [t.data_ptr() for t in raw],
            statistics.data_ptr(),
            memory.data_ptr(),
            g_x.data_ptr(),
            [t.data_ptr() for t in g_weights],
            g_bn.data_ptr(),
        )
        vectors = g_bn.split([k for channels in self._channels for k in (2 * channels, channels, channels)])
        return g_x, g_weights, list(zip(vectors[1::3], vectors[2::3], strict=True))


def _running(statistics: RunningStatistics) -> tuple[int, int, int, float]:
    mean, var, batches, momentum = statistics
    return native.pointer(mean), native.pointer(var), native.pointer(batches), momentum


def prepare_training(layers: Sequence[TrainedLayer], residual: int | None) -> TrainingBlock | None:
    """``layers`` as a block; None where they compute nothing, or numbers would have to be converted in each step."""
    dtype = layers[0].x.dtype
    engines = [engine for a in layers if (engine := Engine.of(a.x, a.weight, a.conv)) is not None]
    vectors = [v for a in layers for v in (a.bn_weight, a.bn_bias, a.running.mean, a.running.var) if v is not None]
    counts = [a.running.batches for a in layers if a.running.batches is not None]
    if dtype not in (torch.float32, torch.float64) or len(engines) < len(layers):
        return None
    if not all(v.dtype == dtype and v.is_contiguous() for v in vectors) or any(c.dtype != torch.int64 for c in counts):
        return None
    if any(engine.weight.data_ptr() != a.weight.data_ptr() for engine, a in zip(engines, layers, strict=True)):
        return None  # a filter that is not dense
    return TrainingBlock(layers, engines, residual)
