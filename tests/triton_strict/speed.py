"""Shortcuts through Triton's front end, which takes nine tenths of an interpreted kernel's time: types made once."""

from __future__ import annotations

import math
from typing import Any

import triton.language as tl
from triton._utils import validate_block_shape
from triton.language.semantic import TritonSemantic

__all__ = ["install"]

_block_shapes: dict[tuple[int, ...], tuple[tl.tuple, int, str]] = {}
_tensor_shapes: dict[tuple[int, ...], tuple[tl.tuple, tl.constexpr]] = {}


def _block_type_init(self: tl.block_type, element_ty: tl.dtype, shape: Any) -> None:
    values = shape.values if isinstance(shape, tl.tuple) else shape
    key = tuple(v.value if isinstance(v, tl.constexpr) else v for v in values)
    if key not in _block_shapes:
        if not key:
            raise TypeError("a block type needs a dimension")
        sizes = tl.tuple(list(key))
        _block_shapes[key] = sizes, validate_block_shape(sizes), str(sizes)
    self.element_ty = element_ty
    self.shape, self.numel, text = _block_shapes[key]
    self.name = f"<{text}, {element_ty}>"


def _tensor_init(self: tl.tensor, handle: Any, type: tl.dtype) -> None:
    key = tuple(type.shape.values) if type.is_block() else ()
    if key not in _tensor_shapes:
        _tensor_shapes[key] = tl.tuple([tl.constexpr(v) for v in key]), tl.constexpr(math.prod(key))
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _tensor_shapes[key]


def install() -> None:
    tl.block_type.__init__ = _block_type_init
    tl.tensor.__init__ = _tensor_init
    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_unless_equal(self: TritonSemantic, left: tl.tensor, right: tl.tensor) -> Any:
        a, b = left.type, right.type
        if a.is_block() and b.is_block() and a.shape.values == b.shape.values:
            return left, right
        return broadcast(self, left, right)

    TritonSemantic.broadcast_impl_value = broadcast_unless_equal
