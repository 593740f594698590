"""Batch norm and activations inside a kernel, on tiles [pixels, channels] in float32.

norm(x) = (x - mean) scale + shift, with scale = weight / sqrt(var + eps) and shift = bias. Comparisons are phrased such
that NaN behaves as it does in PyTorch.
"""

import triton
import triton.language as tl

__all__ = ["activate", "activate_derivative", "apply_norm", "norm_vectors"]


@triton.jit
def norm_vectors(
    bn,  # BatchNorm of pointers to [C], or None
    c,  # [channels]
    ok,  # [channels]: which of them exist
):
    """mean, scale and shift [channels]; 0, 1 and 0 without a norm, and 0 where a channel does not exist."""
    mean = tl.zeros(c.shape, tl.float32)
    scale = mean + 1.0
    shift = mean
    if bn is not None:
        mean = tl.load(bn.mean + c, mask=ok, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.load(bn.var + c, mask=ok, other=1.0).to(tl.float32) + bn.eps)
        if bn.weight is not None:
            scale *= tl.load(bn.weight + c, mask=ok, other=0.0).to(tl.float32)
        if bn.bias is not None:
            shift = tl.load(bn.bias + c, mask=ok, other=0.0).to(tl.float32)
    return mean, scale, shift


@triton.jit
def apply_norm(
    x,  # [pixels, channels]
    bn,  # BatchNorm or None
    mean,  # [channels]
    scale,  # [channels]
    shift,  # [channels]
):
    if bn is not None:
        x = (x - mean[None, :]) * scale[None, :] + shift[None, :]
    return x


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """act(z)"""
    if ACTIVATION == "identity":
        out = z
    elif ACTIVATION == "relu":
        out = tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        out = tl.where(z > 0.0, z, z * slope)
    elif ACTIVATION == "relu6":
        low = tl.where(z < 0.0, 0.0, z)
        out = tl.where(low > 6.0, 6.0, low)
    elif ACTIVATION == "silu":
        out = z / (tl.exp(-z) + 1.0)
    elif ACTIVATION == "hardswish":
        low = tl.where(z + 3.0 < 0.0, 0.0, z + 3.0)
        out = z * tl.where(low > 6.0, 6.0, low) * (1.0 / 6)
    else:
        tl.static_assert(ACTIVATION == "gelu", "an activation that the kernels do not know")
        out = z * 0.5 * (tl.erf(z * 0.70710678118654752440) + 1.0)
    return out


@triton.jit
def activate_derivative(z, slope, ACTIVATION: tl.constexpr):
    """act'(z)"""
    if ACTIVATION == "identity":
        out = tl.full(z.shape, 1.0, tl.float32)
    elif ACTIVATION == "relu":
        out = tl.where(z <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "leaky_relu":
        out = tl.where(z > 0.0, 1.0, slope)
    elif ACTIVATION == "relu6":
        out = tl.where((z <= 0.0) | (z >= 6.0), 0.0, 1.0)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (tl.exp(-z) + 1.0)
        out = sigmoid * (z * (1.0 - sigmoid) + 1.0)
    elif ACTIVATION == "hardswish":
        above = tl.where(z >= 3.0, 1.0, z * (1.0 / 3) + 0.5)
        out = tl.where(z <= -3.0, 0.0, above)
    else:
        tl.static_assert(ACTIVATION == "gelu", "an activation that the kernels do not know")
        cdf = tl.erf(z * 0.70710678118654752440) * 0.5 + 0.5
        out = z * tl.exp(z * z * -0.5) * 0.39894228040143267794 + cdf  # 1 / sqrt(2 pi)
    return out
