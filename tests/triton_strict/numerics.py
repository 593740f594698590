"""What a GPU computes, in numpy: bfloat16 as a type, TF32 and 16-bit products accumulated in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from .errors import KernelError

__all__ = ["install", "round_to_bfloat16", "round_to_tf32"]

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits, as uint16, of float32 values rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def round_to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to TF32's 10 bits of mantissa, ties away from zero, as tensor cores take them."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, Handle) and value.dtype.scalar == tl.bfloat16


def _widen(value: Any) -> Any:
    """A bfloat16 handle as float32, anything else as it is."""
    if not _is_bfloat16(value):
        return value
    return Handle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(values: np.ndarray) -> Handle:
    return Handle(round_to_bfloat16(np.asarray(values, np.float32)), tl.bfloat16)


def _in_float32(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """An elementwise operation that takes bfloat16 in float32 and rounds its result back."""

    def wrapper(self: Any, *args: Any) -> Handle:
        if not any(_is_bfloat16(a) for a in args):
            return original(self, *args)
        out = original(self, *(_widen(a) for a in args))
        return _narrow(out.data) if out.data.dtype == np.float32 else out

    return wrapper


def _cast(original: Callable[..., Handle]) -> Callable[..., Handle]:
    def wrapper(self: Any, source: Handle, target: tl.dtype, *rounding: Any) -> Handle:
        narrows = target.scalar == tl.bfloat16
        if narrows and not _is_bfloat16(source):
            return _narrow(source.data)
        return original(self, source if narrows else _widen(source), target)

    return wrapper


def _dot(self: Any, a: Handle, b: Handle, accumulator: Handle, precision: Any, _: Any) -> Handle:
    """a @ b + accumulator. Products of 16-bit types are exact in float32, where tensor cores add them up."""
    left, right = (_widen(h).data.astype(accumulator.data.dtype) for h in (a, b))
    if a.dtype.scalar == tl.float32 and precision == interpreter._ir.INPUT_PRECISION.TF32:
        left, right = round_to_tf32(left), round_to_tf32(right)
    return Handle(left @ right + accumulator.data, accumulator.dtype.scalar)


def _erf(self: Any, arg: Handle) -> Handle:
    return Handle(torch.erf(torch.from_numpy(np.ascontiguousarray(arg.data))).numpy(), arg.dtype.scalar)


def _reduce_in_float32(original: Callable[..., Any]) -> Callable[..., Any]:
    """A reduction or scan that takes bfloat16 in float32 and rounds its results back."""

    def with_handle(t: tl.tensor, handle: Handle) -> tl.tensor:
        return tl.tensor(handle, t.type.with_element_ty(handle.dtype.scalar) if t.type.is_block() else handle.dtype)

    def wrapper(self: Any, inputs: tuple[tl.tensor, ...]) -> Any:
        narrow = [_is_bfloat16(t.handle) for t in inputs]
        if not any(narrow):
            return original(self, inputs)
        outputs = original(self, tuple(with_handle(t, _widen(t.handle)) for t in inputs))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        rounded = [with_handle(o, _narrow(o.handle.data)) if n else o for o, n in zip(outputs, narrow, strict=False)]
        return rounded if len(rounded) > 1 else rounded[0]

    return wrapper


def _checked(operation: Callable[..., np.ndarray]) -> Callable[..., Handle]:
    """Integer arithmetic that raises where 32 bits do not hold its result: on a GPU an offset would wrap around."""

    def wrapper(self: Any, left: Handle, right: Handle) -> Handle:
        if left.data.dtype != np.int32:
            return self.binary_op(left, right, operation)
        wide = operation(left.data.astype(np.int64), right.data.astype(np.int64))
        out = wide.astype(np.int32)
        if not np.array_equal(out, wide):
            raise KernelError(f"overflow: {operation.__name__} of 32-bit integers gives {wide.ravel()[0]} and the like")
        return Handle(out, left.dtype.scalar)

    return wrapper


def _by_scalar(original: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    """numpy's type of a Triton type; the original builds a table of all types with each call."""
    known: dict[str, np.dtype] = {}

    def wrapper(dtype: Any) -> np.dtype:
        name = str(dtype.scalar)
        if name not in known:
            known[name] = original(dtype.scalar)
        return known[name]

    return wrapper


def install() -> None:
    interpreter._get_np_dtype = _by_scalar(interpreter._get_np_dtype)
    # Triton's own check of overflows costs half of all time.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    for name, operation in (("create_add", np.add), ("create_sub", np.subtract), ("create_mul", np.multiply)):
        setattr(Builder, name, _checked(operation))
    for name in ("binary_op", "unary_op", "ternary_op", "create_fma", "create_clampf"):
        setattr(Builder, name, _in_float32(getattr(Builder, name)))
    for reducer in (interpreter.ReduceOps, interpreter.ScanOps):
        reducer.apply_impl = _reduce_in_float32(reducer.apply_impl)
    cast = Builder.cast_impl
    Builder.cast_impl = _cast(cast)
    Builder.create_fp_to_fp = _cast(lambda self, source, target: cast(self, source, target))
    Builder.create_dot = _dot
    Builder.create_erf = _erf
