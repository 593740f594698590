"""Where the time of a step goes: clocks around its phases and its blocks.

A forward is cut where a block returns, a backward where the gradient of a block's output is complete. So the parts of a
phase join without gaps: what runs before the first block is the stem, what runs behind the last one is the head, and
what runs between two belongs to the later one. A model that is called again begins with its stem again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..fuse import FuseReport

__all__ = ["HEAD", "STEM", "BlockClock", "block_names"]

STEM, HEAD = "(stem)", "(head)"

Spans = Iterable[tuple[float, float]]  # start and end, in seconds


def block_names(report: FuseReport) -> list[str]:
    """The blocks to tell apart: the modules that were fused, but not the model, a backbone in it, or a block's own."""
    names = [entry.name for entry in (*report.fused, *report.partial) if entry.name]
    blocks = [name for name in names if not _has_stages(name, names)]
    return [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]


def _has_stages(name: str, names: Iterable[str]) -> bool:
    """Whether a module is a backbone: what is fused in it lies in several containers, as layer1.0 and layer2.0 do."""
    inner = {other.rpartition(".")[0] for other in names if other.startswith(f"{name}.")}
    return len(inner - {name}) > 1


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
        self._in_stem = True
        self._watched: Tensor | None = None

    def forward_ms(self, spans: Spans) -> dict[str, float]:
        """Milliseconds of each part of the forwards that ran in ``spans``."""
        total: dict[str, float] = {}
        for start, end in spans:
            cuts = [*_within(self._forward, start, end), (HEAD, end)]
            if cuts[0][0] == HEAD:  # there was no call before
                cuts = cuts[1:] or cuts
            for (name, until), begin in zip(cuts, [start, *(when for _, when in cuts)], strict=False):
                total[name] = total.get(name, 0.0) + 1e3 * (until - begin)
        return total

    def backward_ms(self, spans: Spans) -> dict[str, float]:
        """As :meth:`forward_ms`."""
        total: dict[str, float] = {}
        for start, end in spans:
            cuts = [(HEAD, start), *_within(self._backward, start, end)]
            for (name, begin), until in zip(cuts, [*(when for _, when in cuts[1:]), end], strict=True):
                total[name] = total.get(name, 0.0) + 1e3 * (until - begin)
        return total

    def __enter__(self) -> BlockClock:
        self._handles = ExitStack()
        hooks: list[tuple[nn.Module, Callable[..., None], Callable[..., None]]] = [(self.model, self._call, self._end)]
        hooks += [
            (self.model.get_submodule(name), partial(self._enter, name), partial(self._leave, name))
            for name in self.names
        ]
        for module, before, behind in hooks:
            self._handles.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            self._handles.callback(module.register_forward_hook(behind).remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.close()
        self._watched = None  # it would keep the step's graph, and that the heap's end, from the next step

    def _call(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self._forward.append((HEAD, self._now()))  # of the call before
        self._in_stem = True
        self.on_enter(STEM)

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._in_stem:
            self._forward.append((STEM, self._now()))
            self._watch(STEM, (args, kwargs))
            self._in_stem = False
        self.order.append(name)
        self.on_enter(name)

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._forward.append((name, self._now()))
        self._watch(name, output)
        self.on_enter(HEAD)

    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        self._watch(HEAD, output)

    def _watch(self, name: str, values: Any) -> None:
        """Marks when the gradient of the first tensor in ``values`` is complete: what made it comes next."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and value.requires_grad:
                if value is not self._watched:  # the model's output may be that of its last block
                    value.register_hook(lambda _: self._arrive(name))
                self._watched = value
                return

    def _arrive(self, name: str) -> None:
        self._backward.append((name, self._now()))
        self.on_enter(name)

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


def _within(cuts: list[tuple[str, float]], start: float, end: float) -> list[tuple[str, float]]:
    return [(name, when) for name, when in cuts if start <= when <= end]


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits for all work on ``device``."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
