"""The CPU backend: the C++ kernels of csrc/cpu, one module an op.

Convolutions run on an engine of our own, with everything around them in its prologues and epilogues; which algorithm
computes one, says :mod:`.conv_algorithm`. Working memory and that of large tensors is kept until :func:`empty_cache`:
glibc would return such large blocks to the system, and to fault their pages in again costs more than to write them.
"""

from __future__ import annotations

from torch import Tensor

from ... import _cpu
from ..arguments import Conv
from .bn_act_conv import bn_act_conv, bn_act_conv_backward
from .bn_act_max_pool import bn_act_max_pool, bn_act_max_pool_backward
from .bn_add_act import bn_add_act, bn_add_act_backward
from .conv_algorithm import conv_algorithm
from .conv_bn_add_act import conv_bn_add_act
from .memory import connect_profiler, empty_cache, free_workspace, tensor_memory, workspace_bytes
from .prepared_convs import prepare_convs
from .training_block import prepare_training

__all__ = [
    "bn_act_conv",
    "bn_act_conv_backward",
    "bn_act_max_pool",
    "bn_act_max_pool_backward",
    "bn_add_act",
    "bn_add_act_backward",
    "conv_algorithm",
    "conv_bn_add_act",
    "empty_cache",
    "free_workspace",
    "isa",
    "prepare_convs",
    "prepare_training",
    "set_isa",
    "supported_isas",
    "tensor_memory",
    "unsupported",
    "workspace_bytes",
]

connect_profiler()

isa, set_isa, supported_isas = _cpu.isa, _cpu.set_isa, _cpu.supported_isas


def unsupported(op: str, x: Tensor, weight: Tensor | None = None, conv: Conv | None = None) -> str | None:
    """Why this backend lacks a case, or None. It has all of them."""
    return None
