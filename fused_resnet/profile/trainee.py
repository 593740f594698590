"""One of the two copies of a model, its step, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median, median_low
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from .blocks import STEM, BlockClock, synchronizer
from .counts import Counter
from .forward import Forward, losses
from .kineto import profiled_step
from .result import PHASES
from .timeline import kernel_rows, mark, timeline

__all__ = ["Optimizer", "Trainee"]

Optimizer = Callable[[Any], torch.optim.Optimizer]
Begin = Callable[[str], object]  # is told which phase begins


class Trainee:
    """One variant with its optimizer, and its measurements."""

    def __init__(
        self, model: nn.Module, names: list[str], forward: Forward, optimizer: Optimizer | None, device: torch.device
    ) -> None:
        self.model, self.forward, self.device = _in_channels_last(model), forward, device
        self.optimizer = optimizer(model.parameters()) if optimizer else _sgd(model)
        self.wait = synchronizer(device)
        self.clock = BlockClock(model, names, self.wait)
        self.bare: list[float] = []
        self.steps: list[dict[str, float]] = []
        self.parts: list[dict[str, dict[str, float]]] = []  # of each step: ms by phase and block
        self.counter: Counter | None = None
        self.ops: list[dict[str, Any]] = []
        self.trace: dict[str, Any] = {}
        self.timeline: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []
        self.profiler_overhead = 0.0  # as a share of the bare step before it

    def warm_up(self) -> None:
        """An untimed step. Raises ValueError where there is no loss, or one of another model."""

        def begin(phase: str) -> None:
            if phase == "optimizer" and all(p.grad is None for p in self.model.parameters()):
                raise ValueError(
                    "profile: expected a loss of the model given to forward, but none of its parameters has a gradient"
                )

        self._step(begin)

    def bare_ms(self) -> float:
        """A step timed as a whole."""
        self.wait()
        start = time.perf_counter()
        self._step()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def time_bare(self) -> None:
        """As :meth:`bare_ms`, kept."""
        self.bare.append(self.bare_ms())

    def timed(self) -> None:
        """A step with a clock at each phase and block."""
        marks: list[tuple[str, float]] = []

        def begin(phase: str) -> None:
            self.wait()
            marks.append((phase, time.perf_counter()))

        self.clock.clear()
        with self.clock:
            self._step(begin)
        begin("")
        spans: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
        for (phase, start), (_, end) in pairwise(marks):
            spans[phase].append((start, end))
        times = {phase: 1e3 * sum(end - start for start, end in spans[phase]) for phase in PHASES}
        forward, backward = self.clock.forward_ms(spans["forward"]), self.clock.backward_ms(spans["backward"])
        self.parts.append({"forward_ms": forward, "backward_ms": backward})
        self.steps.append(times | {"step": 1e3 * (marks[-1][1] - marks[0][1])})  # last, as it says that there is one

    def count(self) -> None:
        """A forward and backward that counts bytes, FLOP, and what is kept."""
        counter = Counter(STEM)
        counter.exclude([*self.model.parameters(), *self.model.buffers()])
        clock = BlockClock(self.model, self.clock.names, lambda: None, counter.enter)
        call = self.model.register_forward_pre_hook(
            lambda _, args, kwargs: counter.exclude(tree_leaves((args, kwargs))), with_kwargs=True
        )
        with clock, counter:
            self._propagate(counter.begin)
        call.remove()
        self.optimizer.zero_grad(set_to_none=True)
        self.counter = counter

    def profile(self) -> None:
        """A step under torch.profiler, with marks at its phases and blocks, behind a bare one."""
        clock = BlockClock(self.model, self.clock.names, lambda: None, lambda name: mark("block", name))

        def step() -> None:
            start = time.perf_counter()
            with clock:
                self._step(lambda phase: mark("phase", phase))
            self.wait()
            self.profiler_overhead = 1e3 * (time.perf_counter() - start) / bare_ms - 1

        self.bare_ms()  # what was counted and traced before has moved the heap: a first step faults new pages in
        bare_ms = self.bare_ms()
        self.ops, self.trace = profiled_step(step, self.device)
        self.timeline, self.kernels = timeline(self.trace), kernel_rows(self.trace)

    def median_step(self) -> dict[str, float]:
        """The step of median length with its phases, and the median of the bare steps."""
        return self.steps[self._median] | {"bare": median(self.bare)}

    def clocks_overhead(self) -> float:
        """How much longer a step takes with clocks than the bare one beside it, as a share: the median over steps."""
        return median(step["step"] / bare for step, bare in zip(self.steps, self.bare, strict=False)) - 1

    @property
    def _median(self) -> int:
        lengths = [step["step"] for step in self.steps]
        return lengths.index(median_low(lengths))

    def block(self, name: str) -> dict[str, float]:
        """What was measured of one block."""
        times = {phase: ms.get(name, 0.0) for phase, ms in self.parts[self._median].items()}
        counter = self.counter
        counts = {"flop": 0, "moved_bytes": 0, "kept_bytes": 0}
        if counter is not None:
            counts = {"flop": counter.flop[name], "moved_bytes": counter.bytes[name], "kept_bytes": counter.kept[name]}
        return times | counts

    def _step(self, begin: Begin = lambda phase: None) -> None:
        self._propagate(begin)
        begin("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _propagate(self, begin: Begin) -> None:
        for loss in losses(self.forward, self.model, lambda: begin("forward")):
            begin("backward")
            loss.backward()


def _in_channels_last(model: nn.Module) -> nn.Module:
    """``model`` with its parameters [K, C, R, S] in channels_last; those of other ranks stay, which ``to`` refuses."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
