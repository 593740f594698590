"""Batch norm, residual add and activation in one pass: the tail of a residual block.

Forward, with norm(x) = weight invstd (x - mean) + bias and invstd = 1 / sqrt(var + eps); a norm may be absent::

    out = act(norm(x) + norm_r(residual))

Backward, where z = norm(x) + norm_r(residual) is recomputed::

    p = g_out act'(z);  g_x = weight invstd p;  s = sum p;  t = sum p (x - mean)
    g_bias = s;  g_weight = invstd t;  g_mean = -weight invstd s;  g_var = -1/2 weight invstd^3 t
    and the same for the residual with its own norm; without one its gradient is p

Without any norm, the derivative of an activation that keeps the sign of its argument is read off ``out``, so that one
tensor is saved instead of two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends.arguments import Activation, BatchNorm, accumulate_dtype
from . import _library, checks

__all__ = ["BNAddActFunction", "bn_add_act"]

# act'(act(z)) = act'(z)
_DERIVATIVE_FROM_OUTPUT = ("identity", "relu", "relu6")


class _Arguments(NamedTuple):
    """The arguments of the forward op, in the order of its schema."""

    x: Tensor  # [N, C, H, W]
    mean: Tensor | None  # [C]
    var: Tensor | None  # [C]
    bn_weight: Tensor | None  # [C]
    bn_bias: Tensor | None  # [C]
    eps: float
    residual: Tensor | None  # [N, C, H, W]
    r_mean: Tensor | None  # [C]
    r_var: Tensor | None  # [C]
    r_bn_weight: Tensor | None  # [C]
    r_bn_bias: Tensor | None  # [C]
    r_eps: float
    activation: str
    negative_slope: float

    @property
    def bn(self) -> BatchNorm | None:
        return BatchNorm.optional(*self[1:6])

    @property
    def residual_bn(self) -> BatchNorm | None:
        return BatchNorm.optional(*self[7:12])

    @property
    def act(self) -> Activation:
        return Activation(*self[12:])

    def check(self) -> None:
        checks.check_image(self.x)
        checks.check_batch_norm(self.x, self.bn)
        checks.check_residual(self.residual, self.x.shape, self.x)
        if self.residual is None and self.r_mean is not None:
            raise ValueError("residual_bn: expected None where there is no residual, got a batch norm")
        checks.check_batch_norm(self.x, self.residual_bn, "residual_bn")
        checks.check_activation(self.activation)


_SCHEMA = (
    "(Tensor x, Tensor? mean, Tensor? var, Tensor? bn_weight, Tensor? bn_bias, float eps, Tensor? residual, "
    "Tensor? r_mean, Tensor? r_var, Tensor? r_bn_weight, Tensor? r_bn_bias, float r_eps, str activation, "
    "float negative_slope) -> Tensor"
)
_BACKWARD_SCHEMA = "(Tensor g_out, " + _SCHEMA[1:].replace("-> Tensor", "-> (Tensor, Tensor, Tensor, Tensor)")


def _forward(*args: Any) -> Tensor:
    a = _Arguments(*args)
    a.check()
    x = checks.dense(a.x)
    residual = None if a.residual is None else checks.like(a.residual, x)
    return backends.choose("bn_add_act", x)(x, a.bn, residual, a.residual_bn, a.act)


def _fake(*args: Any) -> Tensor:
    a = _Arguments(*args)
    a.check()
    return torch.empty_like(checks.dense(a.x))


def _backward(g_out: Tensor, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    a = _Arguments(*args)
    x = checks.dense(a.x)
    residual = None if a.residual is None else checks.like(a.residual, x)
    run = backends.choose("bn_add_act_backward", x)
    return run(checks.like(g_out, x), x, a.bn, residual, a.residual_bn, a.act)


def _backward_fake(g_out: Tensor, *args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    a = _Arguments(*args)
    x = checks.dense(a.x)
    vectors = x.new_empty(4, x.shape[1], dtype=accumulate_dtype(x.dtype))
    return (
        torch.empty_like(x),
        None if a.mean is None else vectors,
        None if a.residual is None else torch.empty_like(x),
        None if a.r_mean is None else torch.empty_like(vectors),
    )


class BNAddActFunction(torch.autograd.Function):
    """Autograd of ``torch.ops.fused_resnet.bn_add_act``; takes the arguments of its schema."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        out: Tensor = _library.without_autograd(_op, *args)
        a = _Arguments(*args)
        ctx.residual = a.residual is not None
        if a.mean is None and a.r_mean is None and a.activation in _DERIVATIVE_FROM_OUTPUT:
            a = a._replace(x=out, residual=None)
        ctx.save_for_backward(*a[:5], *a[6:11])
        ctx.scalars = a.eps, a[11:]
        ctx.backend = backends.requested_backend()
        return out

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, g_out: Tensor) -> tuple[Any, ...]:
        saved, (eps, scalars) = ctx.saved_tensors, ctx.scalars
        with backends.use_backend(ctx.backend):
            g_x, g_bn, g_residual, g_residual_bn = _backward_op(g_out, *saved[:5], eps, *saved[5:], *scalars)
        if ctx.residual and g_residual is None:
            g_residual = g_x
        vectors = [(None,) * 4 if g is None else g.unbind() for g in (g_bn, g_residual_bn)]
        grads = (g_x, *vectors[0], None, g_residual, *vectors[1], None, None, None)
        return tuple(g if n else None for g, n in zip(grads, ctx.needs_input_grad, strict=True))


_op = _library.register("bn_add_act" + _SCHEMA, _forward, _fake, BNAddActFunction)
_backward_op = _library.register("bn_add_act_backward" + _BACKWARD_SCHEMA, _backward, _backward_fake)


def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None = None,
    residual: Tensor | None = None,  # [N, C, H, W]
    residual_bn: BatchNorm | None = None,
    activation: str = "relu",
    *,
    negative_slope: float = 0.01,
) -> Tensor:
    """``act(norm(x) + norm_r(residual))``, either norm or the residual absent where None.

    Args:
        x: [N, C, H, W] in float32, bfloat16, float16 or float64, in channels_last or contiguous.
        bn: batch norm of ``x``, or None for none.
        residual: [N, C, H, W] in the type of ``x``; brought to its layout.
        residual_bn: batch norm of ``residual``, where that comes raw from a projection shortcut's convolution.
        activation: one of ``fused_resnet.ops.ACTIVATIONS``.
        negative_slope: of ``leaky_relu``.

    Returns:
        out [N, C, H, W] in the layout and type of ``x``; differentiable, once.

    Raises:
        TypeError, ValueError: with what was expected and what came.
    """
    none = (None, None, None, None, 0.0)
    x = checks.dense(x)
    if isinstance(residual, Tensor) and residual.dim() == 4:
        residual = checks.like(residual, x)
    bn_args, residual_bn_args = (none if b is None else b for b in (bn, residual_bn))
    return _op(x, *bn_args, residual, *residual_bn_args, activation, negative_slope)
