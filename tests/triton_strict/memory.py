"""Every access of a kernel, checked: which tensor, within it, aligned, and not shared between programs.

A launch gives each tensor an address range of its own, 2^44 bytes wide, so a pointer says which argument it was made
from, and one element beyond a tensor is an error even where another tensor happens to lie there. For each element of a
storage a shadow remembers which program read and which wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from .errors import KernelError

__all__ = ["LaunchMemory", "Traffic", "install", "record_traffic"]

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

_RANGE_BITS = 44
_NOBODY, _SEVERAL, _ATOMIC = 0, -2, -3  # what a shadow holds beside program number + 1


@dataclass
class Traffic:
    """Bytes that a launch asked for, by argument name; a masked lane asks for none."""

    kernel: str
    loaded: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)


@dataclass
class _Shadow:
    """Who read and who wrote each element of a storage."""

    address: int
    itemsize: int
    readers: np.ndarray
    writers: np.ndarray


@dataclass
class _Region:
    """A tensor argument: its address range, where it really lies, and the shadow of its storage."""

    name: str
    base: int
    address: int
    nbytes: int
    shape: tuple[int, ...]
    shadow: _Shadow


class LaunchMemory:
    """The tensors of one launch."""

    def __init__(self, kernel: str) -> None:
        self.regions: list[_Region] = []
        self.shadows: dict[int, _Shadow] = {}
        self.traffic = Traffic(kernel)
        self.program = 0

    def pointer(self, name: str, tensor: torch.Tensor) -> int:
        """The address under which a kernel sees ``tensor``."""
        storage = tensor.untyped_storage()
        shadow = self.shadows.get(storage.data_ptr())
        if shadow is None:
            elements = storage.nbytes() // tensor.element_size()
            shadow = _Shadow(storage.data_ptr(), tensor.element_size(), *(np.zeros(elements, np.int32) for _ in "rw"))
            self.shadows[storage.data_ptr()] = shadow
        extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        nbytes = extent * tensor.element_size() if tensor.numel() else 0
        # Half a range of room below, and the alignment of the true address.
        base = (len(self.regions) << _RANGE_BITS) + (1 << _RANGE_BITS - 1) + tensor.data_ptr() % 4096
        self.regions.append(_Region(name, base, tensor.data_ptr(), nbytes, tuple(tensor.shape), shadow))
        return base

    def access(self, kind: str, pointers: Handle, mask: np.ndarray) -> np.ndarray:
        """Checks and counts an access; returns the true addresses of all lanes, valid where the mask is."""
        addresses, lanes = np.broadcast_arrays(pointers.data, mask)
        chosen = addresses[lanes.astype(bool)].ravel()
        if not chosen.size:
            return np.ascontiguousarray(addresses)
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        region = self._region(kind, chosen, size)
        if np.any(chosen % np.uint64(size)):
            raise KernelError(f"misaligned {kind} of {region.name} for its {size}-byte elements")
        counts = self.traffic.loaded if kind == "load" else self.traffic.stored
        counts[region.name] = counts.get(region.name, 0) + chosen.size * size
        shift = region.address - region.base
        true = chosen.astype(np.int64) + shift
        self._check_sharing(kind, region, (true - region.shadow.address) // region.shadow.itemsize)
        return (addresses.astype(np.int64) + shift).astype(np.uint64)

    def _region(self, kind: str, chosen: np.ndarray, size: int) -> _Region:
        low, high = int(chosen.min()), int(chosen.max()) + size
        number = low >> _RANGE_BITS
        if number >= len(self.regions) or (high - 1) >> _RANGE_BITS != number:
            raise KernelError(f"{kind} out of bounds in program {self.program}: address of no tensor, or of two")
        region = self.regions[number]
        if low < region.base or high > region.base + region.nbytes:
            worst = low - region.base if low < region.base else high - size - region.base
            raise KernelError(
                f"{kind} out of bounds in program {self.program}: byte {worst} of {region.name} "
                f"{list(region.shape)}, {region.nbytes} bytes"
            )
        return region

    def _check_sharing(self, kind: str, region: _Region, elements: np.ndarray) -> None:
        me = self.program + 1
        readers, writers = region.shadow.readers, region.shadow.writers
        wrote, read = writers[elements], readers[elements]
        by_others = (wrote != _NOBODY) & (wrote != me)
        if kind == "load":
            if by_others.any():
                raise KernelError(f"race: program {self.program} reads {region.name} where another program writes")
            if (wrote == me).any():  # a GPU orders a program's threads by a barrier, which no kernel of ours has
                raise KernelError(f"program {self.program} reads back what it wrote to {region.name}")
            readers[elements] = np.where((read == _NOBODY) | (read == me), me, _SEVERAL)
        elif kind == "store":
            if np.unique(elements).size != elements.size:
                raise KernelError(f"duplicate write: one store of program {self.program} to {region.name}")
            if (wrote == me).any():
                raise KernelError(f"duplicate write: two stores of program {self.program} to {region.name}")
            if by_others.any():
                raise KernelError(f"race: program {self.program} writes {region.name} where another program wrote")
            if ((read != _NOBODY) & (read != me)).any():
                raise KernelError(f"race: program {self.program} writes {region.name} where another program reads")
            writers[elements] = me
        else:
            if (by_others & (wrote != _ATOMIC)).any() or ((read != _NOBODY) & (read != me)).any():
                raise KernelError(f"race: atomic of program {self.program} on {region.name}, others access it plainly")
            writers[elements] = _ATOMIC


current: LaunchMemory | None = None
_recorders: list[list[Traffic]] = []


@contextmanager
def record_traffic() -> Iterator[list[Traffic]]:
    """Collects the traffic of every launch within."""
    launches: list[Traffic] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)


@contextmanager
def launch_memory(kernel: str) -> Iterator[LaunchMemory]:
    """The memory of one launch, as the one that accesses are checked against."""
    global current
    before, current = current, LaunchMemory(kernel)
    try:
        yield current
        for launches in _recorders:
            launches.append(current.traffic)
    finally:
        current = before


def _poison(shape: tuple[int, ...], dtype: tl.dtype) -> Handle:
    """What masked lanes hold where the kernel names no value: on a GPU anything, here what no result survives."""
    numpy_type = interpreter._get_np_dtype(dtype)
    if dtype.scalar == tl.bfloat16:
        value: Any = 0x7FC0
    elif np.issubdtype(numpy_type, np.floating):
        value = np.nan
    else:
        value = True if numpy_type == np.bool_ else np.iinfo(numpy_type).max // 3
    return Handle(np.full(shape, value, numpy_type), dtype)


def _load(self: Any, pointers: Handle, mask: Handle, other: Handle | None, *hints: Any) -> Handle:
    assert current is not None
    addresses = current.access("load", pointers, mask.data)
    dtype = pointers.get_element_ty()
    lanes = np.ascontiguousarray(np.broadcast_to(mask.data, addresses.shape))
    filler = _poison(addresses.shape, dtype).data if other is None else other.data
    filler = np.ascontiguousarray(np.broadcast_to(filler, addresses.shape))
    return Handle(interpreter._interpreter.load(addresses, lanes, filler, interpreter._get_np_dtype(dtype)), dtype)


def _store(self: Any, pointers: Handle, value: Handle, mask: Handle, *hints: Any) -> Any:
    assert current is not None
    addresses = current.access("store", pointers, mask.data)
    values, lanes = (np.ascontiguousarray(np.broadcast_to(a.data, addresses.shape)) for a in (value, mask))
    return interpreter._interpreter.store(addresses, values, lanes)


def install() -> None:
    Builder.create_masked_load = _load
    Builder.create_masked_store = _store
    rmw, cas = Builder.create_atomic_rmw, Builder.create_atomic_cas

    def atomic_rmw(self: Any, op: Any, pointers: Handle, value: Handle, mask: Handle, *rest: Any) -> Handle:
        assert current is not None
        addresses = current.access("atomic", pointers, mask.data)
        return rmw(self, op, Handle(addresses, pointers.dtype), value, mask, *rest)

    def atomic_cas(self: Any, pointers: Handle, *rest: Any) -> Handle:
        assert current is not None
        addresses = current.access("atomic", pointers, np.ones_like(pointers.data, bool))
        return cas(self, Handle(addresses, pointers.dtype), *rest)

    Builder.create_atomic_rmw, Builder.create_atomic_cas = atomic_rmw, atomic_cas
