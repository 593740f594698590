"""Batch norm, activation and max pooling in one pass: the stem's tail.

Forward: ``u = act(norm(x))``, out = the largest u of each window, with its position in the window as one byte.
Backward: ``g_u`` gathers g_out over the windows that chose an element, then as in :mod:`.bn_add_act`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends.arguments import Activation, BatchNorm, MaxPool, accumulate_dtype, memory_format
from . import _library, checks

__all__ = ["BNActMaxPoolFunction", "bn_act_max_pool"]


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
    kernel_size: list[int]
    stride: list[int]
    padding: list[int]

    @property
    def bn(self) -> BatchNorm | None:
        return BatchNorm.optional(*self[1:6])

    @property
    def act(self) -> Activation:
        return Activation(*self[6:8])

    @property
    def pool(self) -> MaxPool:
        return MaxPool(tuple(self.kernel_size), tuple(self.stride), tuple(self.padding))  # type: ignore[arg-type]

    def check(self) -> None:
        checks.check_image(self.x)
        checks.check_batch_norm(self.x, self.bn)
        checks.check_activation(self.activation)
        checks.check_max_pool(self.x, self.pool)


_SCHEMA = (
    "(Tensor x, Tensor? mean, Tensor? var, Tensor? bn_weight, Tensor? bn_bias, float eps, str activation, "
    "float negative_slope, SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding) -> (Tensor, Tensor)"
)
_BACKWARD_SCHEMA = "(Tensor g_out, Tensor indices, " + _SCHEMA[1:]


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    a.check()
    x = checks.dense(a.x)
    return backends.choose("bn_act_max_pool", x)(x, a.bn, a.act, a.pool)


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    a = _Arguments(*args)
    a.check()
    size = (*a.x.shape[:2], *a.pool.output_size((a.x.shape[2], a.x.shape[3])))
    layout = memory_format(checks.dense(a.x))
    out = torch.empty(size, dtype=a.x.dtype, device=a.x.device, memory_format=layout)
    return out, torch.empty_like(out, dtype=torch.uint8)


def _backward(g_out: Tensor, indices: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
    a = _Arguments(*args)
    x = checks.dense(a.x)
    run = backends.choose("bn_act_max_pool_backward", x)
    return run(checks.like(g_out, x), checks.like(indices, x), x, a.bn, a.act, a.pool)


def _backward_fake(g_out: Tensor, indices: Tensor, *args: Any) -> tuple[Tensor, Tensor | None]:
    a = _Arguments(*args)
    vectors = a.x.new_empty(4, a.x.shape[1], dtype=accumulate_dtype(a.x.dtype))
    return torch.empty_like(checks.dense(a.x)), None if a.mean is None else vectors


class BNActMaxPoolFunction(torch.autograd.Function):
    """Autograd of ``torch.ops.fused_resnet.bn_act_max_pool``; takes the arguments of its schema."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        out, indices = _library.without_autograd(_op, *args)
        ctx.save_for_backward(indices, *args[:5])
        ctx.scalars = args[5:]
        ctx.backend = backends.requested_backend()
        ctx.mark_non_differentiable(indices)
        return out, indices

    @staticmethod
    @_library.once_differentiable
    def backward(ctx: Any, g_out: Tensor, _: Tensor) -> tuple[Any, ...]:
        with backends.use_backend(ctx.backend):
            g_x, g_bn = _backward_op(g_out, *ctx.saved_tensors, *ctx.scalars)
        grads = (g_x, *((None,) * 4 if g_bn is None else g_bn.unbind()), *(None,) * 6)
        return tuple(g if n else None for g, n in zip(grads, ctx.needs_input_grad, strict=True))


_op = _library.register("bn_act_max_pool" + _SCHEMA, _forward, _fake, BNActMaxPoolFunction)
_backward_op = _library.register("bn_act_max_pool_backward" + _BACKWARD_SCHEMA, _backward, _backward_fake)


def bn_act_max_pool(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None = None,
    activation: str = "relu",
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 2,
    padding: int | tuple[int, int] = 1,
    *,
    negative_slope: float = 0.01,
) -> Tensor:
    """Max pooling of ``act(norm(x))``, as in the stem of a ResNet.

    Args:
        x: [N, C, H, W] in float32, bfloat16, float16 or float64, in channels_last or contiguous.
        bn: batch norm of ``x``, or None for none.
        activation: one of ``fused_resnet.ops.ACTIVATIONS``.
        kernel_size, stride, padding: as in ``torch.nn.functional.max_pool2d``, in pixels; a window of at most 256.
        negative_slope: of ``leaky_relu``.

    Returns:
        out [N, C, OH, OW] in the layout and type of ``x``; differentiable, once. NaN wins.

    Raises:
        TypeError, ValueError: with what was expected and what came.
    """
    geometry = [checks.pair(v, n) for v, n in ((kernel_size, "kernel_size"), (stride, "stride"), (padding, "padding"))]
    vectors = (None, None, None, None, 0.0) if bn is None else bn
    out, _ = _op(checks.dense(x), *vectors, activation, negative_slope, *geometry)
    return out
