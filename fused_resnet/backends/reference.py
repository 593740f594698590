"""The reference backend: every op in stock PyTorch, on any device. The other backends are held against it.

Math is done in float32 (float64 for float64) and stored in the input's type, as the native backends do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Activation, BatchNorm, Conv, MaxPool, accumulate_dtype, memory_format

__all__ = [
    "bn_act_conv",
    "bn_act_conv_backward",
    "bn_act_max_pool",
    "bn_act_max_pool_backward",
    "bn_add_act",
    "bn_add_act_backward",
    "conv_bn_add_act",
    "unsupported",
]


def unsupported(op: str, x: Tensor, weight: Tensor | None = None, conv: Conv | None = None) -> str | None:
    """Why this backend lacks a case, or None. The reference has all of them."""
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
    y = F.conv2d(bn_act(x, bn, activation), weight, bias, *conv).contiguous(memory_format=torch.channels_last)
    if not statistics:
        nothing = y.new_empty(0, dtype=accumulate_dtype(x.dtype))
        return y, nothing, nothing.clone()
    return y, *channel_statistics(y)


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
    g = g_y if g_mean is None or g_var is None else statistics_backward(g_y, g_mean, g_var, y, y_mean)
    u = bn_act(x, bn, activation) if output_mask[1] else x
    p, g_weight, g_bias = convolution_backward(g, u, weight, conv, output_mask)
    if p is None:
        return None, None, g_weight, g_bias
    return *_norm_backward(_activation_backward(p, _norm(x, bn), activation), x, bn), g_weight, g_bias


def bn_add_act(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> Tensor:
    """out [N, C, H, W]."""
    out = _activation(_sum(x, bn, residual, residual_bn), activation).to(x.dtype)
    return out.clone() if out is x else _in_layout_of(x, out)


def bn_add_act_backward(
    g_out: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, C, H, W]
    residual_bn: BatchNorm | None,
    activation: Activation,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """g_x [N, C, H, W], g_bn [4, C], g_residual [N, C, H, W], g_residual_bn [4, C]."""
    p = _activation_backward(g_out, _sum(x, bn, residual, residual_bn), activation)
    g_x, g_bn = _norm_backward(p, x, bn)
    if residual is None:
        return g_x, g_bn, None, None
    g_residual, g_residual_bn = _norm_backward(p, residual, residual_bn)
    return g_x, g_bn, g_residual.clone() if g_residual is g_x else g_residual, g_residual_bn


def bn_act_max_pool(
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor]:
    """out [N, C, OH, OW] and the winner's position in its window, uint8 [N, C, OH, OW]."""
    u = bn_act(x, bn, activation)
    out, flat = F.max_pool2d(u, *pool, return_indices=True)  # flat = h * W + w
    top, left = _window_origins(x, pool)
    row, column = flat // x.shape[3] - top, flat % x.shape[3] - left
    indices = row * pool.kernel_size[1] + column
    return (
        out.contiguous(memory_format=memory_format(x)),
        indices.to(torch.uint8).contiguous(memory_format=memory_format(x)),
    )


def bn_act_max_pool_backward(
    g_out: Tensor,  # [N, C, OH, OW]
    indices: Tensor,  # [N, C, OH, OW], uint8
    x: Tensor,  # [N, C, H, W]
    bn: BatchNorm | None,
    activation: Activation,
    pool: MaxPool,
) -> tuple[Tensor, Tensor | None]:
    """g_x [N, C, H, W] and g_bn [4, C]."""
    top, left = _window_origins(x, pool)
    row, column = indices.long() // pool.kernel_size[1], indices.long() % pool.kernel_size[1]
    flat = (top + row) * x.shape[3] + left + column
    g_u = g_out.new_zeros(x.shape, dtype=accumulate_dtype(x.dtype)).flatten(2)
    g_u.scatter_add_(2, flat.flatten(2), g_out.to(g_u.dtype).flatten(2))
    return _norm_backward(_activation_backward(g_u.view(x.shape), _norm(x, bn), activation), x, bn)


def conv_bn_add_act(
    x: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    bias: Tensor | None,  # [K]
    bn: BatchNorm | None,
    residual: Tensor | None,  # [N, K, OH, OW]
    activation: Activation,
    conv: Conv,
) -> Tensor:
    """out [N, K, OH, OW]."""
    y = F.conv2d(x, weight, bias, *conv).contiguous(memory_format=torch.channels_last)
    return bn_add_act(y, bn, residual, None, activation)


def bn_act(x: Tensor, bn: BatchNorm | None, activation: Activation) -> Tensor:
    """act(norm(x)) in the type of x."""
    return _activation(_norm(x, bn), activation).to(x.dtype)


def channel_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [K] of y [N, K, H, W]; zeros for an empty one."""
    dtype = accumulate_dtype(y.dtype)
    if y.numel() == 0:
        zeros = y.new_zeros(y.shape[1], dtype=dtype)
        return zeros, zeros.clone()
    var, mean = torch.var_mean(y.to(dtype), (0, 2, 3), correction=0)
    return mean, var


def statistics_backward(
    g_y: Tensor,  # [N, K, H, W]
    g_mean: Tensor,  # [K]
    g_var: Tensor,  # [K]
    y: Tensor,  # [N, K, H, W]
    y_mean: Tensor,  # [K]
) -> Tensor:
    """g = g_y + g_mean / m + 2 g_var (y - y_mean) / m, with m = N H W."""
    dtype = accumulate_dtype(y.dtype)
    m = max(y.numel() // y.shape[1], 1)
    centred = y.to(dtype) - _channels(y_mean)
    return (g_y.to(dtype) + _channels(g_mean / m) + _channels(g_var * (2 / m)) * centred).to(y.dtype)


def convolution_backward(
    g: Tensor,  # [N, K, OH, OW]
    u: Tensor,  # [N, C, H, W]
    weight: Tensor,  # [K, C / groups, R, S]
    conv: Conv,
    output_mask: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, weight and bias, those that ``output_mask`` asks for."""
    one_by_one = weight.shape[2] == weight.shape[3] == 1 and conv.padding == (0, 0)
    if output_mask[1] and one_by_one and conv.stride != (1, 1) and weight.shape[1] < 16:
        # A strided 1x1 convolution reads every stride-th pixel alone. For fewer than 16 channels in channels_last
        # oneDNN's weight gradient of it writes out of bounds (PyTorch 2.14). Dense, on just these pixels, it does not.
        read = u[:, :, :: conv.stride[0], :: conv.stride[1]].contiguous(memory_format=torch.channels_last)
        dense = conv._replace(stride=(1, 1))
        g_weight = convolution_backward(g, read, weight, dense, (False, True, False))[1]
        g_u, _, g_bias = convolution_backward(g, u, weight, conv, (output_mask[0], False, output_mask[2]))
        return g_u, g_weight, g_bias
    g_u, g_weight, g_bias = torch.ops.aten.convolution_backward(
        g, u, weight, [weight.shape[0]], *conv[:3], False, [0, 0], conv.groups, list(output_mask)
    )
    return g_u, None if g_weight is None else _in_layout_of(weight, g_weight), g_bias


def bn_gradients(
    s: Tensor,  # [C], sum of p
    t: Tensor,  # [C], sum of p (x - mean)
    bn: BatchNorm,
) -> Tensor:
    """Gradients of (mean, var, weight, bias) as one tensor [4, C]."""
    invstd = torch.rsqrt(bn.var.to(s.dtype) + bn.eps)
    scale = invstd if bn.weight is None else bn.weight.to(s.dtype) * invstd
    return torch.stack((-scale * s, -0.5 * scale * invstd.square() * t, invstd * t, s))


def _channels(v: Tensor) -> Tensor:
    return v[:, None, None]


def _in_layout_of(x: Tensor, t: Tensor) -> Tensor:
    formats = (torch.channels_last, torch.contiguous_format)  # of a 1x1 filter both are true, whatever its strides
    same = any(x.is_contiguous(memory_format=f) and t.is_contiguous(memory_format=f) for f in formats)
    return t if same or t.stride() == x.stride() else torch.empty_like(x).copy_(t)


def _scale(bn: BatchNorm, dtype: torch.dtype) -> Tensor:
    invstd = torch.rsqrt(bn.var.to(dtype) + bn.eps)
    return invstd if bn.weight is None else bn.weight.to(dtype) * invstd


def _norm(x: Tensor, bn: BatchNorm | None) -> Tensor:
    dtype = accumulate_dtype(x.dtype)
    x = x.to(dtype)
    if bn is None:
        return x
    z = (x - _channels(bn.mean.to(dtype))) * _channels(_scale(bn, dtype))
    return z if bn.bias is None else z + _channels(bn.bias.to(dtype))


def _norm_backward(p: Tensor, x: Tensor, bn: BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """From p, the gradient of norm(x): that of x along the direct path, and of the batch norm's vectors [4, C]."""
    if bn is None:
        return _in_layout_of(x, p.to(x.dtype)), None
    s = p.sum((0, 2, 3))
    t = (p * (x.to(p.dtype) - _channels(bn.mean.to(p.dtype)))).sum((0, 2, 3))
    g_x = (_channels(_scale(bn, p.dtype)) * p).to(x.dtype)
    return _in_layout_of(x, g_x), bn_gradients(s, t, bn)


def _sum(x: Tensor, bn: BatchNorm | None, residual: Tensor | None, residual_bn: BatchNorm | None) -> Tensor:
    z = _norm(x, bn)
    return z if residual is None else z + _norm(residual, residual_bn)


def _activation(z: Tensor, activation: Activation) -> Tensor:
    if activation.name == "identity":
        return z
    if activation.name == "leaky_relu":
        return F.leaky_relu(z, activation.negative_slope)
    return getattr(F, activation.name)(z)


def _activation_backward(g: Tensor, z: Tensor, activation: Activation) -> Tensor:
    """g * act'(z) as a tensor of its own in the type of z, by PyTorch's own derivative."""
    aten, g = torch.ops.aten, g.to(z.dtype)
    match activation.name:
        case "identity":
            return g.clone()
        case "relu":
            return aten.threshold_backward(g, z, 0)
        case "leaky_relu":
            return aten.leaky_relu_backward(g, z, activation.negative_slope, False)
        case "relu6":
            return aten.hardtanh_backward(g, z, 0, 6)
        case "silu":
            return aten.silu_backward(g, z)
        case "hardswish":
            return aten.hardswish_backward(g, z)
        case "gelu":
            return aten.gelu_backward(g, z)
    raise ValueError(f"activation: expected one of the known names, got {activation.name!r}")


def _window_origins(x: Tensor, pool: MaxPool) -> tuple[Tensor, Tensor]:
    """Row [OH, 1] and column [OW] of every window's first position; negative where padding begins it."""
    height, width = pool.output_size((x.shape[2], x.shape[3]))
    top = torch.arange(height, device=x.device) * pool.stride[0] - pool.padding[0]
    left = torch.arange(width, device=x.device) * pool.stride[1] - pool.padding[1]
    return top[:, None], left
