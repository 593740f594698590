"""Devices, streams and captured graphs of the CPU runtime: see streams.cpp."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from support.capture import NothingComputes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fused_resnet.backends.cuda import native

__all__ = ["Graph", "Runtime"]

T = TypeVar("T")


class Graph:
    """Launches that were captured, and the memory that they point to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.memory: list[Tensor] = []
        self.handle: int | None = None

    @property
    def launches(self) -> int:
        return self._runtime.library.cuda_on_cpu_launches(ctypes.c_void_p(self.handle))

    def replay(self) -> None:
        error = self._runtime.library.cuda_on_cpu_replay(ctypes.c_void_p(self.handle))
        assert error == 0, error


class Runtime:
    """The runtime inside a module or library that :mod:`cuda_on_cpu.build` made."""

    def __init__(self, path: Path) -> None:
        self.library: Any = ctypes.CDLL(str(path))
        for name in ("create_stream", "end_capture"):
            getattr(self.library, f"cuda_on_cpu_{name}").restype = ctypes.c_void_p
        self._threads = ThreadPoolExecutor()  # kept: to TSan the threads of their blocks are dear

    @classmethod
    def of_kernels(cls) -> Runtime:
        """That of the module which serves CPU tensors."""
        path = native.kernels(torch.empty(0)).__file__
        assert path
        return cls(Path(path))

    @property
    def current_device(self) -> int:
        return self.library.cuda_on_cpu_current_device()

    @contextmanager
    def on_device(self, device: int) -> Iterator[int]:
        """Tensors made within this context are memory of this device, and ops run there on a stream of their own."""
        stream = self.library.cuda_on_cpu_create_stream(device)
        try:
            with mock.patch.object(native, "queue", lambda x: (device, stream)), _Placed(self, device):
                yield stream
        finally:
            self.library.cuda_on_cpu_destroy_stream(ctypes.c_void_p(stream))

    def at_once(self, calls: Sequence[Callable[[], T]], devices: Sequence[int]) -> list[T]:
        """What the calls return, each made by a host thread of its own on a stream of its device.

        The threads take turns at launching, so that between two launches of one there is one of another's.
        """
        here, all_are_here = threading.local(), threading.Barrier(len(calls))

        def make(call: Callable[[], T], device: int) -> T:
            stream = self.library.cuda_on_cpu_create_stream(device)
            here.queue = device, stream
            self.library.cuda_on_cpu_take_turns(True)
            try:
                all_are_here.wait()
                with _Placed(self, device):
                    return call()
            finally:
                self.library.cuda_on_cpu_take_turns(False)
                self.library.cuda_on_cpu_destroy_stream(ctypes.c_void_p(stream))

        with mock.patch.object(native, "queue", lambda x: here.queue):
            return list(self._threads.map(make, calls, devices))

    @contextmanager
    def launching_into_nothing(self) -> Iterator[None]:
        """Launches cost what the host does before the driver, and are forgotten."""
        stream = self.library.cuda_on_cpu_create_stream(0)
        self.library.cuda_on_cpu_begin_capture(ctypes.c_void_p(stream), False)
        try:
            with mock.patch.object(native, "queue", lambda x: (0, stream)):
                yield
        finally:
            self.library.cuda_on_cpu_destroy_graph(ctypes.c_void_p(self.library.cuda_on_cpu_end_capture()))
            self.library.cuda_on_cpu_destroy_stream(ctypes.c_void_p(stream))

    def place(self, x: Tensor, device: int) -> None:
        storage = x.untyped_storage()
        address, size = ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())
        self.library.cuda_on_cpu_place(address, size, device)

    def forget_places(self) -> None:
        self.library.cuda_on_cpu_forget_places()

    @contextmanager
    def capture(self, stream: int) -> Iterator[Graph]:
        """Launches to the stream are kept in the graph; its handle is None where something was refused."""
        graph = Graph(self)
        self.library.cuda_on_cpu_begin_capture(ctypes.c_void_p(stream), True)
        try:
            with NothingComputes() as nothing:
                graph.memory = nothing.memory
                yield graph
        finally:
            graph.handle = self.library.cuda_on_cpu_end_capture()


class _Placed(TorchDispatchMode):
    """Places what is allocated on a device."""

    def __init__(self, runtime: Runtime, device: int) -> None:
        super().__init__()
        self.runtime, self.device = runtime, device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if isinstance(result, Tensor):
            self.runtime.place(result, self.device)
        return result
