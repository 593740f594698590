"""Convolution, batch norm, residual add and activation for inference: ``out = act(norm(conv(x, weight)) + residual)``.

It has no gradient. Training cuts elsewhere: see :mod:`.bn_act_conv`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends.arguments import Activation, BatchNorm, Conv
from . import _library, checks

__all__ = ["check", "conv_bn_add_act"]


class _Arguments(NamedTuple):
    """The arguments of the op, in the order of its schema."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    mean: Tensor | None  # [K]
    var: Tensor | None  # [K]
    bn_weight: Tensor | None  # [K]
    bn_bias: Tensor | None  # [K]
    eps: float
    residual: Tensor | None  # [N, K, OH, OW]
    activation: str
    negative_slope: float
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @property
    def bn(self) -> BatchNorm | None:
        return BatchNorm.optional(*self[3:8])

    @property
    def conv(self) -> Conv:
        return Conv(tuple(self.stride), tuple(self.padding), tuple(self.dilation), self.groups)  # type: ignore[arg-type]

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        size = self.conv.output_size((self.x.shape[2], self.x.shape[3]), (self.weight.shape[2], self.weight.shape[3]))
        return self.x.shape[0], self.weight.shape[0], *size

    def check(self) -> None:
        checks.check_image(self.x)
        checks.check_activation(self.activation)
        checks.check_conv(self.x, self.weight, self.bias, self.conv)
        checks.check_residual(self.residual, self.output_shape, self.x)
        checks.check_batch_norm(self.x, self.bn, channels=self.weight.shape[0])


def check(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    bn: BatchNorm,  # [K]
    residual: Tensor | None,  # [N, K, OH, OW]
    activation: Activation,
    conv: Conv,
) -> tuple[int, int, int, int]:
    """The shape of the output [N, K, OH, OW]. Raises as the op does; no data is read."""
    arguments = _Arguments(x, weight, bias, *bn, residual, *activation, *conv)  # type: ignore[arg-type]
    arguments.check()
    return arguments.output_shape


_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? mean, Tensor? var, Tensor? bn_weight, Tensor? bn_bias, float eps, "
    "Tensor? residual, str activation, float negative_slope, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups) -> Tensor"
)


def _forward(*args: Any) -> Tensor:
    a = _Arguments(*args)
    a.check()
    run = backends.choose("conv_bn_add_act", a.x, a.weight, a.conv)
    residual = None if a.residual is None else checks.channels_last(a.residual, "residual")
    activation = Activation(a.activation, a.negative_slope)
    return run(checks.channels_last(a.x), a.weight, a.bias, a.bn, residual, activation, a.conv)


def _fake(*args: Any) -> Tensor:
    a = _Arguments(*args)
    a.check()
    return torch.empty(a.output_shape, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)


_op = _library.register("conv_bn_add_act" + _SCHEMA, _forward, _fake, autocast=(0, 1, 2, 8))


def conv_bn_add_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bn: BatchNorm | None = None,
    residual: Tensor | None = None,  # [N, K, OH, OW]
    activation: str = "relu",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    bias: Tensor | None = None,  # [K]
    negative_slope: float = 0.01,
) -> Tensor:
    """``act(norm(conv(x, weight)) + residual)`` for inference.

    Args:
        x: [N, C, H, W] in float32, bfloat16, float16 or float64; brought to channels_last.
        weight: [K, C / groups, R, S] in the type of ``x``.
        bn: batch norm of the convolution's output, with running statistics [K], or None for none.
        residual: [N, K, OH, OW] in the type of ``x``, or None for none.
        activation: one of ``fused_resnet.ops.ACTIVATIONS``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``, in pixels.
        bias: [K], the convolution's own.
        negative_slope: of ``leaky_relu``.

    Returns:
        out [N, K, OH, OW] in channels_last and the type of ``x``.

    Raises:
        TypeError, ValueError: with what was expected and what came.
        RuntimeError: where a gradient would be needed.
    """
    stride, padding, dilation = (
        checks.pair(v, n) for v, n in ((stride, "stride"), (padding, "padding"), (dilation, "dilation"))
    )
    vectors = (None, None, None, None, 0.0) if bn is None else bn
    return _op(
        checks.channels_last(x),
        weight,
        bias,
        *vectors,
        residual,
        activation,
        negative_slope,
        stride,
        padding,
        dilation,
        groups,
    )
