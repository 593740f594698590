"""Where the time of a step goes: clocks around its phases and its blocks.

A forward is cut where a block returns, a backward where the gradient of a block's output is complete. So the parts of a
phase join without gaps: what runs before the first block is the stem, what runs behind the last one is the head, and
what runs between two belongs to the later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..fuse import FuseReport

__all__ = ["HEAD", "STEM", "BlockClock", "block_names"]

STEM, HEAD = "(stem)", "(head)"


def block_names(report: FuseReport) -> list[str]:
    """The blocks to tell apart: the modules that were fused, without the model itself and without nested ones."""
    names = [entry.name for entry in (*report.fused, *report.partial) if entry.name]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


class BlockClock:
    """Within its ``with`` block, cuts forward and backward at the blocks of ``model``; ``clear`` before each step.

    ``synchronize`` is called before the time is read. ``on_enter`` is told which part runs from now on.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        synchronize: Callable[[], None],
        on_enter: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.model, self.names = model, names
        self.synchronize, self.on_enter = synchronize, on_enter
        self.clear()

    def clear(self) -> None:
        """Forgets the last step."""
        self._forward: list[tuple[str, float]] = []  # part, and when it ended
        self._backward: list[tuple[str, float]] = []  # part, and when it began
        self.order: list[str] = []

    def forward_ms(self, start: float, end: float) -> dict[str, float]:
        """Milliseconds of each part of a forward that ran from ``start`` to ``end``, in seconds."""
        ends = [*self._forward, (HEAD, end)]
        starts = [start, *(when for _, when in self._forward)]
        return _summed((name, end - start) for (name, end), start in zip(ends, starts, strict=True))

    def backward_ms(self, start: float, end: float) -> dict[str, float]:
        """As :meth:`forward_ms`."""
        begins = [(HEAD, start), *self._backward]
        ends = [*(when for _, when in self._backward), end]
        return _summed((name, end - begin) for (name, begin), end in zip(begins, ends, strict=True))

    def __enter__(self) -> BlockClock:
        self._handles = ExitStack()
        for name in self.names:
            module = self.model.get_submodule(name)
            for handle in (
                module.register_forward_pre_hook(lambda _, args, name=name: self._enter(name, args)),
                module.register_forward_hook(lambda _, args, output, name=name: self._leave(name, output)),
            ):
                self._handles.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()

    def _enter(self, name: str, args: tuple[Any, ...]) -> None:
        if not self.order:
            self._forward.append((STEM, self._now()))
            self._watch(STEM, args)
        self.order.append(name)
        self.on_enter(name)

    def _leave(self, name: str, output: Any) -> None:
        self._forward.append((name, self._now()))
        self._watch(name, (output,))
        self.on_enter(HEAD)

    def _watch(self, name: str, values: Sequence[Any]) -> None:
        """Marks when the gradient of the first tensor in ``values`` is complete: what made it comes next."""
        for value in values:
            if isinstance(value, tuple | list):
                return self._watch(name, value)
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda _: self._arrive(name))
                return None
        return None

    def _arrive(self, name: str) -> None:
        self._backward.append((name, self._now()))
        self.on_enter(name)

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


def _summed(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, seconds in parts:
        total[name] = total.get(name, 0.0) + 1e3 * seconds
    return total


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for all work on ``device``."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
