"""Layers of bn_act_conv one after another, and bn_add_act behind them, in training: each way one native call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _cpu
from ..arguments import TrainedLayer
from . import native
from .engine import Engine

__all__ = ["TrainingBlock", "prepare_training"]


class TrainingBlock:
    """A block of layers, each with its :class:`Engine`. It holds no tensor.

    Parameters are three a layer: the filter [K, C / groups, R, S] with the strides it was prepared with, and weight
    and bias of the batch norm, [K] each and dense.
    """

    def __init__(self, layers: Sequence[TrainedLayer], engines: Sequence[Engine], residual: int | None) -> None:
        self._dtype = layers[0].x.dtype
        self._filters = [(tuple(layer.weight.shape), layer.weight.stride()) for layer in layers]
        self._shapes = [engine.output_shape for engine in engines]
        self._channels = [shape[1] for shape in self._shapes]
        arguments = [
            (
                engine.arguments,
                engine.weight_gradient_arguments(layer.conv, self._dtype)[1],
                native.activation(layer.activation),
                layer.eps,
                layer.momentum,
                layer.x_value,
            )
            for layer, engine in zip(layers, engines, strict=True)
        ]
        self._block = _cpu.TrainingBlock(arguments, -1 if residual is None else residual)

    @property
    def is_current(self) -> bool:
        """Whether the instruction set is the one that the algorithms were chosen for."""
        return self._block.is_current

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        parameters: Sequence[Tensor],
        running: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """out [N, K, OH, OW], and for backward: statistics [2 sum(K)], raw outputs [N, K, OH, OW] of the layers.

        x is in channels_last. Moves ``running``, three a layer: mean [K], variance [K], number of batches [].
        """
        raw = [native.empty_image(shape, self._dtype) for shape in self._shapes]
        out = native.empty_image(self._shapes[-1], self._dtype)
        statistics = torch.empty(2 * sum(self._channels), dtype=self._dtype)
        self._block.forward(
            x.data_ptr(),
            [t.data_ptr() for t in parameters],
            [native.pointer(t) for t in running],
            [t.data_ptr() for t in raw],
            statistics.data_ptr(),
            out.data_ptr(),
        )
        return out, statistics, raw

    def backward(
        self,
        g_out: Tensor,  # [N, K, OH, OW]
        x: Tensor,  # [N, C, H, W]
        parameters: Sequence[Tensor],
        statistics: Tensor,
        raw: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """g_x [N, C, H, W] and the gradients of the parameters; images are in channels_last."""
        g_x = native.empty_like(x)
        g_weights = [native.empty(*filters, self._dtype) for filters in self._filters]
        g_bn = torch.empty(4 * sum(self._channels), dtype=self._dtype)
        memory = native.empty((self._block.backward_bytes,), (1,), torch.uint8)
        kept = [_with_strides(p, *f) for p, f in zip(parameters[::3], self._filters, strict=True)]
        addresses = [t.data_ptr() for t in parameters]
        addresses[::3] = [t.data_ptr() for t in kept]
        self._block.backward(
            g_out.data_ptr(),
            x.data_ptr(),
            addresses,
            [t.data_ptr() for t in raw],
            statistics.data_ptr(),
            memory.data_ptr(),
            g_x.data_ptr(),
            [t.data_ptr() for t in g_weights],
            g_bn.data_ptr(),
        )
        del kept
        vectors = g_bn.split([k for channels in self._channels for k in (2 * channels, channels, channels)])
        gradients = zip(g_weights, vectors[1::3], vectors[2::3], strict=True)
        return g_x, [g for layer in gradients for g in layer]


def prepare_training(layers: Sequence[TrainedLayer], residual: int | None) -> TrainingBlock | None:
    """``layers`` as a block; None where they compute nothing, or numbers would have to be converted in each step."""
    engines = [engine for a in layers if (engine := Engine.of(a.x, a.weight, a.conv)) is not None]
    if layers[0].x.dtype not in (torch.float32, torch.float64) or len(engines) < len(layers):
        return None
    if any(engine.weight.data_ptr() != a.weight.data_ptr() for engine, a in zip(engines, layers, strict=True)):
        return None  # a filter that is not dense
    return TrainingBlock(layers, engines, residual)


def _with_strides(weight: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """``weight``, which autograd may have kept in another layout."""
    return weight if weight.stride() == stride else weight.new_empty_strided(shape, stride).copy_(weight)
