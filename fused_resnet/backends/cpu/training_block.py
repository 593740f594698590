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

    def __init__(self, engines: Sequence[Engine], layers: Sequence[TrainedLayer], residual: int | None) -> None:
        self._dtype = engines[0].weight.dtype
        self._filters = [(tuple(engine.weight.shape), engine.weight.stride()) for engine in engines]
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
            for engine, layer in zip(engines, layers, strict=True)
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
        kept = [t.contiguous() for t in parameters]
        kept[::3] = [_with_strides(p, *f) for p, f in zip(parameters[::3], self._filters, strict=True)]
        self._block.backward(
            g_out.data_ptr(),
            x.data_ptr(),
            [t.data_ptr() for t in kept],
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


def prepare_training(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], layers: Sequence[TrainedLayer], residual: int | None
) -> TrainingBlock | None:
    """``layers`` as a block; None where they compute nothing, or numbers would have to be converted in each step."""
    if inputs[0].dtype not in (torch.float32, torch.float64):
        return None
    cases = zip(inputs, weights, layers, strict=True)
    engines = [engine for x, weight, layer in cases if (engine := Engine.of(x, weight, layer.conv)) is not None]
    if len(engines) < len(layers):
        return None
    if any(engine.weight.data_ptr() != weight.data_ptr() for engine, weight in zip(engines, weights, strict=True)):
        return None  # a filter that is not dense
    return TrainingBlock(engines, layers, residual)


def _with_strides(weight: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """``weight``, which may have moved to another layout."""
    return weight if weight.stride() == stride else weight.new_empty_strided(shape, stride).copy_(weight)
