"""Modules with fused forwards, and the functions to write more of them with.

:mod:`.reference` holds the plain PyTorch twin of each module.
"""

from . import reference
from .blocks import BasicBlock, BNAddAct2d, Bottleneck, ConvBNAct2d, FusedConvs
from .chain import CifarResNet, ResNet, chain
from .deferred import Deferred, add_act, conv_bn_act, conv_bn_add_act, defer, materialise, max_pool, norm
from .fused_module import FusedModule

__all__ = [
    "BNAddAct2d",
    "BasicBlock",
    "Bottleneck",
    "CifarResNet",
    "ConvBNAct2d",
    "Deferred",
    "FusedConvs",
    "FusedModule",
    "ResNet",
    "add_act",
    "chain",
    "conv_bn_act",
    "conv_bn_add_act",
    "defer",
    "materialise",
    "max_pool",
    "norm",
    "reference",
]
