"""Filters packed for inference: once for each weight, and anew when the weight has changed.

A packed filter lives as long as its weight. It is remembered with the weight's version, which PyTorch counts up at
changes in place, address, which changes with ``weight.data = ...``, and fingerprint, which changes with
``weight.data.mul_(2)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ... import _cpu
from . import native
from .engine import Engine

__all__ = ["packed_filter"]

_packed: Any = WeakIdKeyDictionary()  # (key, packed filter) by weight


def packed_filter(weight: Tensor, engine: Engine) -> Tensor:
    """The filter as the engine multiplies by it, in the accumulation type and a layout of the engine's own."""
    dtype, algorithm, shape, strides, _ = engine.arguments
    geometry = shape[6:9], shape[3], shape[15], shape[9:15]  # K, R, S; C; groups; stride, padding, dilation
    version = None if weight.is_inference() else weight._version
    fingerprint = _cpu.filter_fingerprint(engine.arguments, engine.weight.data_ptr())
    key = (_cpu.isa(), dtype, algorithm, geometry, strides, weight.data_ptr(), version, fingerprint)
    known, packed = _packed.get(weight, (None, None))
    if known != key or version is None:
        packed = native.empty((_cpu.conv_packed_size(engine.arguments),), (1,), engine.weight.dtype)
        _cpu.conv_pack(engine.arguments, engine.weight.data_ptr(), packed.data_ptr())
        _packed[weight] = key, packed
    return packed
