"""Whoever can see ops: under each of these a module must call them one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OBSERVERS", "Functions"]


class Functions(TorchFunctionMode):
    """Looks at every function, and so has blocks run their ops."""

    def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        return function(*args, **(kwargs or {}))


class Ops(TorchDispatchMode):
    def __torch_dispatch__(self, op: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        return op(*args, **(kwargs or {}))


OBSERVERS: dict[str, Callable[[], AbstractContextManager]] = {
    "nobody": nullcontext,
    "function mode": Functions,
    "dispatch mode": Ops,
    "profiler": torch.profiler.profile,
    "autograd profiler": torch.autograd.profiler.profile,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
