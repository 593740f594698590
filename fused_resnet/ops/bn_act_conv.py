"""Batch norm and activation, then a convolution that returns the statistics of its output.

Forward, with norm(x) = weight_bn invstd (x - mean) + bias_bn and invstd = 1 / sqrt(var + eps)::

    u = act(norm(x));  y = conv(u, weight);  y_mean, y_var = mean and biased variance of y over N, H, W

Backward, with m = N H W of y::

    g = g_y + g_mean / m + 2 g_var (y - y_mean) / m
    g_weight = wgrad(u, g), u recomputed from x;  p = dgrad(g, weight) act'(norm(x));  g_x = weight_bn invstd p
    s = sum p;  t = sum p (x - mean)
    g_bias_bn = s;  g_weight_bn = invstd t;  g_mean = -weight_bn invstd s;  g_var = -1/2 weight_bn invstd^3 t
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends.arguments import Activation, BatchNorm, Conv, accumulate_dtype
from . import _library, checks

__all__ = ["BNActConvFunction", "bn_act_conv"]


class _Arguments(NamedTuple):
    """The arguments of the forward op, in the order of its schema."""

    x: Tensor  # [N, C, H, W]
    mean: Tensor | None  # [C]
    var: Tensor | None  # [C]
    bn_weight: Tensor | None  # [C]
    bn_bias: Tensor | None  # [C]
    eps: float
    activation: str
    negative_slope: float
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None  # [K]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    statistics: bool

    @property
    def bn(self) -> BatchNorm | None:
        return BatchNorm.optional(*self[1:6])

    @property
    def act(self) -> Activation:
        return Activation(*self[6:8])

    @property
    def conv(self) -> Conv:
        return Conv(tuple(self.stride), tuple(self.padding), tuple(self.dilation), self.groups)  # type: ignore[arg-type]

    def check(self) -> None:
        checks.check_image(self.x)
        checks.check_batch_norm(self.x, self.bn)
        checks.check_activation(self.activation)
        checks.check_conv(self.x, self.weight, self.bias, self.conv)


_SCHEMA = (
    "(Tensor x, Tensor? mean, Tensor? var, Tensor? bn_weight, Tensor? bn_bias, float eps, str activation, "
    "float negative_slope, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, "
    "SymInt groups, bool statistics) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD_SCHEMA = (
    "(Tensor g_y, Tensor? g_mean, Tensor? g_var, Tensor? y, Tensor y_mean, bool[3] output_mask, "
    f"{_SCHEMA[1:-1]}, Tensor)"
)


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = _Arguments(*args)
    a.check()
    run = backends.choose("bn_act_conv", a.x, a.weight, a.conv)
    return run(checks.channels_last(a.x), a.bn, a.act, a.weight, a.bias, a.conv, a.statistics)


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    a = _Arguments(*args)
    a.check()
    height, width = a.conv.output_size((a.x.shape[2], a.x.shape[3]), (a.weight.shape[2], a.weight.shape[3]))
    size = (a.x.shape[0], a.weight.shape[0], height, width)
    y = torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)
    vector = a.x.new_empty(a.weight.shape[0] if a.statistics else 0, dtype=accumulate_dtype(a.x.dtype))
    return y, vector, torch.empty_like(vector)


def _backward(
    g_y: Tensor,  # [N, K, OH, OW]
    g_mean: Tensor | None,  # [K]
    g_var: Tensor | None,  # [K]
    y: Tensor | None,  # [N, K, OH, OW]
    y_mean: Tensor,  # [K]
    output_mask: list[bool],  # x and bn, weight, bias
    *args: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    a = _Arguments(*args)
    run = backends.choose("bn_act_conv_backward", a.x, a.weight, a.conv)
    g_y, x = checks.channels_last(g_y, "g_y"), checks.channels_last(a.x)
    y = None if y is None else checks.channels_last(y)  # a hook may have kept it in another layout
    return run(g_y, g_mean, g_var, x, a.bn, a.act, a.weight, y, y_mean, a.conv, tuple(output_mask))


def _backward_fake(
    g_y: Tensor,
    g_mean: Tensor | None,
    g_var: Tensor | None,
    y: Tensor,
    y_mean: Tensor,
    output_mask: list[bool],
    *args: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    a = _Arguments(*args)
    vectors = a.x.new_empty(4, a.x.shape[1], dtype=accumulate_dtype(a.x.dtype))
    return (
        torch.empty_like(a.x, memory_format=torch.channels_last) if output_mask[0] else None,
        vectors if output_mask[0] and a.mean is not None else None,
        torch.empty_like(a.weight) if output_mask[1] else None,
        a.x.new_empty(a.weight.shape[0]) if output_mask[2] else None,
    )


class BNActConvFunction(torch.autograd.Function):
    """Autograd of ``torch.ops.fused_resnet.bn_act_conv``; takes the arguments of its schema."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, y_mean, y_var = _library.without_autograd(_op, *args)
        a = _Arguments(*args)
        ctx.save_for_backward(y if a.statistics else None, y_mean, a.x, a.mean, a.var, a.bn_weight, a.bn_bias, a.weight)
        ctx.scalars = a[5:8], a[10:]
        ctx.backend = backends.requested_backend()
        ctx.set_materialize_grads(False)
        if not a.statistics:
            ctx.mark_non_differentiable(y_mean, y_var)
        return y, y_mean, y_var

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, g_y: Tensor | None, g_mean: Tensor | None, g_var: Tensor | None) -> tuple[Any, ...]:
        y, y_mean, x, mean, var, bn_weight, bn_bias, weight = ctx.saved_tensors
        norm, conv = ctx.scalars
        a = (x, mean, var, bn_weight, bn_bias, *norm, weight, None, *conv)
        need = ctx.needs_input_grad
        output_mask = [any(need[:5]), need[8], need[9]]
        if g_y is None:
            g_y = torch.zeros_like(y)
        if g_mean is not None or g_var is not None:
            g_mean = torch.zeros_like(y_mean) if g_mean is None else g_mean
            g_var = torch.zeros_like(y_mean) if g_var is None else g_var
        with backends.use_backend(ctx.backend):
            g_x, g_bn, g_weight, g_bias = _backward_op(g_y, g_mean, g_var, y, y_mean, output_mask, *a)
        g_vectors = (None,) * 4 if g_bn is None else g_bn.unbind()
        grads = (g_x, *g_vectors, *(None,) * 3, g_weight, g_bias, *(None,) * 5)
        return tuple(g if n else None for g, n in zip(grads, need, strict=True))


_op = _library.register("bn_act_conv" + _SCHEMA, _forward, _fake, BNActConvFunction, autocast=(0, 8, 9))
_backward_op = _library.register("bn_act_conv_backward" + _BACKWARD_SCHEMA, _backward, _backward_fake)


def bn_act_conv(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: str,
    weight: Tensor,  # [K, C / groups, R, S]
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    bias: Tensor | None = None,  # [K]
    statistics: bool = True,
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution of ``act(norm(x))``, with the mean and biased variance of what it returns.

    Args:
        x: [N, C, H, W] in float32, bfloat16, float16 or float64; brought to channels_last.
        bn: the batch norm before the activation, or None for none.
        activation: one of ``fused_resnet.ops.ACTIVATIONS``; padding pads its result with zeros.
        weight: [K, C / groups, R, S] in the type of ``x``.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``, in pixels.
        bias: [K], the convolution's own.
        statistics: False leaves the statistics out (both are then empty), for a batch norm that uses running ones.
        negative_slope: of ``leaky_relu``.

    Returns:
        y [N, K, OH, OW] in channels_last and the type of ``x``; its mean [K] and biased variance [K] over N, H, W in
        float32 (float64 for float64). All three are differentiable, once. An empty batch has statistics of zero.

    Raises:
        TypeError, ValueError: with what was expected and what came.
    """
    stride, padding, dilation = (
        checks.pair(v, n) for v, n in ((stride, "stride"), (padding, "padding"), (dilation, "dilation"))
    )
    vectors = (None, None, None, None, 0.0) if bn is None else bn
    x = checks.channels_last(x)
    return _op(x, *vectors, activation, negative_slope, weight, bias, stride, padding, dilation, groups, statistics)
