"""Convolution, batch norm, residual add and activation for inference: out = act(norm(conv(x) + bias) + residual).

The product of :mod:`.conv_forward` without a prologue; norm, residual and activation in its epilogue, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Activation, BatchNorm, Conv
from .bn_act_conv import LIBRARY_CONV
from .conv_choice import implicit_product
from .conv_forward import conv_tile
from .conv_geometry import empty_output, filter_krsc, geometry
from .elementwise import activate, apply_norm, norm_vectors
from .launch import ceil_div, dense_norm, float32_precision, launch, reference_if_empty
from .tuning import product

__all__ = ["conv_bn_add_act"]


@triton.jit
def conv_bn_add_act_kernel(
    x_ptr,  # [N, H, W, groups C]
    weight_ptr,  # [groups K, R, S, C]
    bias_ptr,  # [groups K], or None
    bn,  # BatchNorm of pointers to [groups K], or None
    residual_ptr,  # [N, OH, OW, groups K], or None
    out_ptr,  # [N, OH, OW, groups K]
    size,  # Geometry
    M,  # N OH OW
    slope,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    _, m, k, k_ok, y = conv_tile(x_ptr, None, weight_ptr, size, M, slope, "identity", PRECISION, BM, BN, BK)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + k, mask=k_ok, other=0.0).to(tl.float32)[None, :]
    mean, scale, shift = norm_vectors(bn, k, k_ok)
    z = apply_norm(y, bn, mean, scale, shift)
    offsets = (m.to(tl.int64) * (size.K * size.groups))[:, None] + k[None, :]
    mask = (m < M)[:, None] & k_ok[None, :]
    if residual_ptr is not None:
        z += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, activate(z, slope, ACTIVATION).to(out_ptr.dtype.element_ty), mask=mask)


@reference_if_empty
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
    if not implicit_product("conv_bn_add_act", x, weight, conv):
        return LIBRARY_CONV.inference(x, weight, bias, bn, residual, activation, conv)
    out, size = empty_output(x, weight, conv), geometry(x, weight, conv)
    pixels = x.shape[0] * size.OH * size.OW
    config = product("conv_bn_add_act", x, activation, weight, conv)
    launch(
        conv_bn_add_act_kernel,
        ceil_div(pixels, config.tile["BM"]) * size.groups * ceil_div(size.K, config.tile["BN"]),
        x.device,
        config,
        x,
        filter_krsc(weight),
        None if bias is None else bias.detach().contiguous(),
        dense_norm(bn),
        residual,
        out,
        size,
        pixels,
        activation.negative_slope,
        ACTIVATION=activation.name,
        PRECISION=float32_precision(x),
    )
    return out
