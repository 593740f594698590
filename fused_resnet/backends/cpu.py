"""The CPU backend: the C++ kernels of csrc/cpu, between PyTorch's own convolutions.

:func:`conv_forward` and :func:`conv_backward` are the door for a convolution engine: prologues and epilogues are
theirs, and nothing else here knows that they are passes of their own today. What such a pass hands to a convolution
lies in a workspace of the calling thread: two buffers as large as the largest layer so far, which
:func:`free_workspace` gives back. glibc returns large blocks to the system, and to fault their pages in again costs
more than to write them.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _cpu
from . import reference
from .arguments import ACTIVATIONS, Activation, BatchNorm, Conv, MaxPool, accumulate_dtype

__all__ = [
    "bn_act_conv",
    "bn_act_conv_backward",
    "bn_act_max_pool",
    "bn_act_max_pool_backward",
    "bn_add_act",
    "bn_add_act_backward",
    "conv_bn_add_act",
    "free_workspace",
    "isa",
    "set_isa",
    "supported_isas",
    "unsupported",
]

isa, set_isa, supported_isas = _cpu.isa, _cpu.set_isa, _cpu.supported_isas

# The numbering is that of DType in csrc/shapes.h.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NO_NORM = (0, 0, 0, 0, 0.0)
_buffers = threading.local()


def unsupported(op: str, x: Tensor, pool: MaxPool | None = None) -> str | None:
    """Why this backend lacks a case, or None. It has all that the ops let through."""
    return None


def bn_act_conv(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    conv: Conv,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [N, K, OH, OW], its mean [K] and biased variance [K] (both empty without ``statistics``)."""
    return conv_forward(x, bn, activation, weight, bias, conv, statistics)


def bn_act_conv_backward(
    g_y: Tensor,  # [N, K, OH, OW]
    g_mean: Tensor | None,  # [K]
    g_var: Tensor | None,  # [K]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    y: Tensor,  # [N, K, OH, OW]
    y_mean: Tensor,  # [K]
    conv: Conv,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_weight, g_bias; ``output_mask`` asks for (x and bn, weight, bias)."""
    g = g_y if g_mean is None or g_var is None else _channel_stats_backward(g_y, g_mean, g_var, y, y_mean)
    return conv_backward(g, x, bn, activation, weight, conv, output_mask)


def conv_forward(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    conv: Conv,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prologue u = act(norm(x)), y = conv(u, weight), epilogue mean and variance of y."""
    y = _conv(_bn_act(x, bn, activation), weight, bias, conv)
    mean = torch.empty(y.shape[1] if statistics else 0, dtype=accumulate_dtype(y.dtype))
    var = torch.empty_like(mean)
    if statistics:
        _cpu.channel_stats(_DTYPES[y.dtype], _view(y), _threads(), y.data_ptr(), mean.data_ptr(), var.data_ptr())
    return y, mean, var


def conv_backward(
    g: Tensor,  # [N, K, OH, OW]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    weight: Tensor,  # [K, C / groups, R, S]
    conv: Conv,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """wgrad with u recomputed in its prologue, dgrad with act' and the channel sums in its epilogue.

    Returns g_x [N, C, H, W], g_bn [4, C], g_weight, g_bias as ``output_mask`` asks for.
    """
    u = _bn_act(x, bn, activation) if output_mask[1] else x
    g_u, g_weight, g_bias = reference.convolution_backward(g, u, weight, conv, output_mask)
    if g_u is None:
        return None, None, g_weight, g_bias
    g_u = g_u.contiguous(memory_format=torch.channels_last)
    if bn is None and activation.name == "identity":
        return g_u, None, g_weight, g_bias
    g_x, g_bn, _, _ = _bn_add_act_backward(g_u, x, bn, None, None, activation, g_x=g_u)
    return g_x, g_bn, g_weight, g_bias


def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> Tensor:
    """out [N, C, H, W]."""
    return _bn_add_act(x, bn, residual, residual_bn, activation, out=torch.empty_like(x))


def bn_add_act_backward(
    g_out: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_residual [N, C, H, W], g_residual_bn [4, C]."""
    return _bn_add_act_backward(g_out, x, bn, residual, residual_bn, activation, g_x=torch.empty_like(x))


def bn_act_max_pool(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor]:
    """out [N, C, OH, OW] and the winner's position in its window, uint8 [N, C, OH, OW]."""
    size = (*x.shape[:2], *pool.output_size((x.shape[2], x.shape[3])))
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    indices = torch.empty_like(out, dtype=torch.uint8)
    vectors, norm = _norm(bn, x.dtype)
    _cpu.bn_act_max_pool(
        _DTYPES[x.dtype],
        _activation(activation),
        _pool_shape(x, out, pool),
        _threads(),
        x.data_ptr(),
        norm,
        out.data_ptr(),
        indices.data_ptr(),
    )
    del vectors
    return out, indices


def bn_act_max_pool_backward(
    g_out: Tensor,  # [N, C, OH, OW]
    indices: Tensor,  # [N, C, OH, OW], uint8
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor | None]:
    """g_x [N, C, H, W] and g_bn [4, C]."""
    g_x, g_bn = torch.empty_like(x), _gradient_vectors(bn, x)
    vectors, norm = _norm(bn, x.dtype)
    _cpu.bn_act_max_pool_backward(
        _DTYPES[x.dtype],
        _activation(activation),
        _pool_shape(x, g_out, pool),
        _threads(),
        g_out.data_ptr(),
        indices.data_ptr(),
        x.data_ptr(),
        norm,
        g_x.data_ptr(),
        _pointer(g_bn),
    )
    del vectors
    return g_x, g_bn


def conv_bn_add_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, K, OH, OW]
    activation: Activation,
    conv: Conv,
) -> Tensor:
    """out [N, K, OH, OW]; norm, residual and activation in place of the convolution's output."""
    y = _conv(x, weight, bias, conv)
    return _bn_add_act(y, bn, residual, None, activation, out=y)


def _bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
    out: Tensor,  # [N, C, H, W], may be x
) -> Tensor:
    (vectors, norm), (residual_vectors, residual_norm) = _norm(bn, x.dtype), _norm(residual_bn, x.dtype)
    _cpu.bn_add_act(
        _DTYPES[x.dtype],
        _activation(activation),
        _view(x),
        _threads(),
        x.data_ptr(),
        norm,
        _pointer(residual),
        residual_norm,
        out.data_ptr(),
    )
    del vectors, residual_vectors
    return out


def _bn_add_act_backward(
    g_out: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
    g_x: Tensor,  # [N, C, H, W], may be g_out
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    g_residual = None if residual is None else torch.empty_like(x)
    g_bn, g_residual_bn = _gradient_vectors(bn, x), _gradient_vectors(residual_bn, x)
    (vectors, norm), (residual_vectors, residual_norm) = _norm(bn, x.dtype), _norm(residual_bn, x.dtype)
    _cpu.bn_add_act_backward(
        _DTYPES[x.dtype],
        _activation(activation),
        _view(x),
        _threads(),
        g_out.data_ptr(),
        x.data_ptr(),
        norm,
        _pointer(residual),
        residual_norm,
        g_x.data_ptr(),
        _pointer(g_bn),
        _pointer(g_residual),
        _pointer(g_residual_bn),
    )
    del vectors, residual_vectors
    return g_x, g_bn, g_residual, g_residual_bn


def _channel_stats_backward(
    g_y: Tensor,  # [N, K, H, W]
    g_mean: Tensor,  # [K]
    g_var: Tensor,  # [K]
    y: Tensor,  # [N, K, H, W]
    y_mean: Tensor,  # [K]
) -> Tensor:
    g = _workspace("g", y)
    g_mean, g_var = g_mean.contiguous(), g_var.contiguous()
    _cpu.channel_stats_backward(
        _DTYPES[y.dtype],
        _view(y),
        _threads(),
        g_y.data_ptr(),
        y.data_ptr(),
        y_mean.data_ptr(),
        g_mean.data_ptr(),
        g_var.data_ptr(),
        g.data_ptr(),
    )
    return g


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv) -> Tensor:
    return F.conv2d(x, weight, bias, *conv).contiguous(memory_format=torch.channels_last)


def _bn_act(x: Tensor, bn: BatchNorm | None, activation: Activation) -> Tensor:
    if bn is None and activation.name == "identity":
        return x
    return _bn_add_act(x, bn, None, None, activation, out=_workspace("u", x))


def free_workspace() -> None:
    """Gives back the calling thread's workspace; the next op takes a new one."""
    _buffers.__dict__.clear()


def _workspace(name: str, like: Tensor) -> Tensor:
    """A tensor in the layout of the dense ``like``, which lasts until the next call for this name in this thread."""
    buffer = _buffers.__dict__.get(name)
    if buffer is None or buffer.numel() < like.nbytes:
        _buffers.__dict__[name] = None  # before the larger one is taken
        buffer = _buffers.__dict__[name] = torch.empty(like.nbytes, dtype=torch.uint8)
    return buffer[: like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())


def _threads() -> int:
    return torch.get_num_threads()


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _activation(activation: Activation) -> tuple[int, float]:
    return ACTIVATIONS.index(activation.name), activation.negative_slope


def _view(x: Tensor) -> tuple[int, int, int]:
    """[outer, channels, inner] of a dense tensor: see ChannelView in csrc/shapes.h."""
    n, c, h, w = x.shape
    return (n * h * w, c, 1) if x.is_contiguous(memory_format=torch.channels_last) else (n, c, h * w)


def _norm(bn: BatchNorm | None, dtype: torch.dtype) -> tuple[list[Tensor | None], tuple[int, int, int, int, float]]:
    """The vectors of ``bn`` in the accumulation type, for the caller to keep alive, and their addresses with eps."""
    if bn is None:
        return [], _NO_NORM
    vectors = [None if v is None else v.detach().to(accumulate_dtype(dtype)).contiguous() for v in bn[:4]]
    mean, var, weight, bias = (_pointer(v) for v in vectors)
    return vectors, (mean, var, weight, bias, bn.eps)


def _gradient_vectors(bn: BatchNorm | None, x: Tensor) -> Tensor | None:
    return None if bn is None else torch.empty(4, x.shape[1], dtype=accumulate_dtype(x.dtype))


def _pool_shape(x: Tensor, out: Tensor, pool: MaxPool) -> tuple[int, ...]:
    n, c, h, w = x.shape
    return n, h, w, c, out.shape[2], out.shape[3], *pool.kernel_size, *pool.stride, *pool.padding
