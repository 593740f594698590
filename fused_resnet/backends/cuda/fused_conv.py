"""The fused convolution: forward, the inference op and both gradients, for what ``conv_tile`` sends here."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv, accumulate_dtype
from ..library_conv import bias_gradient
from ..precision import tf32_is_allowed
from . import native
from .conv_algorithm import TILES, conv_tile

__all__ = ["FusedConv"]


@lru_cache(4096)  # every call of a layer has the same
def _conv_shape(x_shape: torch.Size, weight_shape: torch.Size, conv: Conv) -> tuple[int, ...]:
    """The fields of ConvShape in csrc/shapes.h."""
    (n, c, h, w), (k, _, r, s) = x_shape, weight_shape
    out = conv.output_size((h, w), (r, s))
    return (n, h, w, c, *out, k, r, s, *conv.stride, *conv.padding, *conv.dilation, conv.groups)


class FusedConv(NamedTuple):
    """A convolution that the kernels take: what all of its passes share."""

    weight: Tensor  # [K, R, S, C / groups], dense
    shape: tuple[int, ...]  # the fields of ConvShape in csrc/shapes.h
    call: tuple[int, bool, int, tuple[int, ...]]  # dtype, allow_tf32, tile, shape

    @staticmethod
    def of(op: str, x: Tensor, weight: Tensor, conv: Conv) -> FusedConv | None:
        """``op``'s convolution of x [N, C, H, W] with weight [K, C / groups, R, S]; None where cuDNN computes it."""
        tile = conv_tile(op, x, weight, conv)
        if tile is None:
            return None
        shape = _conv_shape(x.shape, weight.shape, conv)
        call = (native.DTYPES[x.dtype], tf32_is_allowed(), TILES.index(tile), shape)
        return FusedConv(weight.detach().permute(0, 2, 3, 1).contiguous(), shape, call)

    def empty_output(self, x: Tensor) -> Tensor:
        """Room for y [N, K, OH, OW] in channels_last."""
        size = (self.shape[0], self.shape[6], self.shape[4], self.shape[5])
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        bn: BatchNorm | None,
        activation: Activation,
        bias: Tensor | None,  # [K]
        statistics: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
        kernels, y = native.kernels(x), self.empty_output(x)
        mean = torch.empty(y.shape[1] if statistics else 0, dtype=accumulate_dtype(x.dtype), device=x.device)
        var = torch.empty_like(mean)
        (vectors, norm), bias = native.norm(bn, x.dtype), native.vector(bias)
        workspace = native.workspace(x, kernels.conv_forward_workspace(self.shape) if statistics else 0)
        kernels.conv_forward(
            native.queue(x),
            self.call,
            native.activation(activation),
            x.data_ptr(),
            norm,
            self.weight.data_ptr(),
            native.pointer(bias),
            y.data_ptr(),
            mean.data_ptr() if statistics else 0,
            var.data_ptr() if statistics else 0,
            workspace.data_ptr(),
        )
        del vectors
        return y, mean, var

    def bn_add_act(
        self,
        x: Tensor,  # [N, C, H, W]
        bias: Tensor | None,  # [K]
        bn: BatchNorm | None,
        residual: Tensor | None,  # [N, K, OH, OW]
        activation: Activation,
    ) -> Tensor:
        """out = act(norm(conv(x) + bias) + residual) [N, K, OH, OW]."""
        out = self.empty_output(x)
        (vectors, norm), bias = native.norm(bn, x.dtype), native.vector(bias)
        native.kernels(x).conv_bn_add_act(
            native.queue(x),
            self.call,
            native.activation(activation),
            x.data_ptr(),
            self.weight.data_ptr(),
            native.pointer(bias),
            norm,
            native.pointer(residual),
            out.data_ptr(),
        )
        del vectors
        return out

    def backward(
        self,
        g_y: Tensor,  # [N, K, OH, OW]
        g_mean: Tensor | None,  # [K]
        g_var: Tensor | None,  # [K]
        x: Tensor,  # [N, C, H, W]
        bn: BatchNorm | None,
        activation: Activation,
        weight: Tensor,  # [K, C / groups, R, S]
        y: Tensor,  # [N, K, OH, OW]
        y_mean: Tensor,  # [K]
        output_mask: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """g_x [N, C, H, W], g_bn [4, C], g_weight, g_bias; ``output_mask`` asks for (x and bn, weight, bias)."""
        parts = (g_y, y, y_mean, g_mean, g_var) if g_mean is not None else (g_y, None, None, None, None)
        kept = [*parts[:2], *(native.vector(v) for v in parts[2:])]
        gradient = tuple(native.pointer(t) for t in kept)
        vectors, norm = native.norm(bn, x.dtype)
        g_x = g_bn = g_weight = g_bias = None
        if output_mask[0]:
            g_x, g_bn = self._dgrad(gradient, x, norm, activation, native.gradient_vectors(bn, x))
        if output_mask[1]:
            g_weight = self._wgrad(gradient, x, norm, activation, weight)
        if output_mask[2]:
            g_bias = bias_gradient(g_y, g_mean, weight.dtype)
        del vectors, kept
        return g_x, g_bn, g_weight, g_bias

    def _dgrad(
        self,
        gradient: tuple[int, ...],
        x: Tensor,  # [N, C, H, W]
        norm: native.Norm,
        activation: Activation,
        g_bn: Tensor | None,  # [4, C]
    ) -> tuple[Tensor, Tensor | None]:
        kernels = native.kernels(x)
        g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        workspace = native.workspace(x, 0 if g_bn is None else kernels.conv_dgrad_workspace(self.shape))
        kernels.conv_dgrad(
            native.queue(x),
            self.call,
            native.activation(activation),
            gradient,
            x.data_ptr(),
            norm,
            self.weight.data_ptr(),
            g_x.data_ptr(),
            native.pointer(g_bn),
            workspace.data_ptr(),
        )
        return g_x, g_bn

    def _wgrad(
        self,
        gradient: tuple[int, ...],
        x: Tensor,  # [N, C, H, W]
        norm: native.Norm,
        activation: Activation,
        weight: Tensor,  # [K, C / groups, R, S]
    ) -> Tensor:
        kernels, g_weight = native.kernels(x), torch.empty_like(self.weight)
        workspace = native.workspace(x, kernels.conv_wgrad_workspace(self.shape))
        kernels.conv_wgrad(
            native.queue(x),
            self.call,
            native.activation(activation),
            gradient,
            x.data_ptr(),
            norm,
            g_weight.data_ptr(),
            workspace.data_ptr(),
        )
        # Into the strides of the weight; those of a 1x1 filter are the same memory.
        if weight.permute(0, 2, 3, 1).is_contiguous():
            return g_weight.as_strided(weight.shape, weight.stride())
        return torch.empty_like(weight).copy_(g_weight.permute(0, 3, 1, 2))
