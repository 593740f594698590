"""The four ops, as torch ops: differentiable, traceable, on every backend."""

from ..backends.arguments import ACTIVATIONS, BatchNorm
from .bn_act_conv import BNActConvFunction, bn_act_conv
from .bn_act_max_pool import BNActMaxPoolFunction, bn_act_max_pool
from .bn_add_act import BNAddActFunction, bn_add_act
from .conv_bn_add_act import conv_bn_add_act

__all__ = [
    "ACTIVATIONS",
    "BNActConvFunction",
    "BNActMaxPoolFunction",
    "BNAddActFunction",
    "BatchNorm",
    "bn_act_conv",
    "bn_act_max_pool",
    "bn_add_act",
    "conv_bn_add_act",
]
