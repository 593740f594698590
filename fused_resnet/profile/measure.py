"""The measurement: two copies of a model, stock and fused, which take turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median, median_low
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..bench.environment import command_line, machine_facts
from ..fuse import fuse, unfuse
from .blocks import HEAD, STEM, BlockClock, block_names, synchronizer
from .counts import Counter
from .kineto import memory_curve, merged_trace, profiled_step
from .machine import measured_roof
from .result import VARIANTS, ProfileResult
from .timeline import mark, timeline

__all__ = ["run"]

STEPS = 5
WARM_UP = 2
CURVE_POINTS = 1000  # of the memory over a step, at most

Progress = Callable[[str, int, int], None]
Loss = Callable[[Any, Any], Tensor]


def run(
    model: nn.Module,
    inputs: Tensor,  # [N, C, H, W]
    targets: Any = None,
    *,
    loss: Loss | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    steps: int = STEPS,
    name: str | None = None,
    progress: Progress | None = None,
) -> ProfileResult:
    """Profiles a training step of ``model``, stock beside fused; the model itself is left as it is.

    Args:
        model: any module that ``fuse`` knows something of, on the device of ``inputs``; two copies of it are trained.
        inputs: a batch of images.
        targets: what ``loss`` gets beside the model's output; classes [N] at random where it is None.
        loss: of output and targets; cross entropy by default, of a tensor [N, classes, ...] or of a dict's ``"out"``.
        optimizer: makes one from parameters; SGD with momentum by default.
        steps: timed steps of each variant.
        name: of the model, for the report.
        progress: told what is done now, how many units of work are done, and of how many.

    Raises ValueError where ``fuse`` finds nothing to fuse, for less than one step, and for a model that is not, all of
    it, on the device of ``inputs``. Ctrl-C ends the timing: the
    steps so far are returned, marked ``interrupted``, or KeyboardInterrupt goes on where there are none.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    session = _Session(model, inputs, targets, loss, optimizer, name or type(model).__name__)
    total = WARM_UP + 2 * steps + 4
    done = 0

    def begin(doing: str) -> None:
        nonlocal done
        if progress:
            progress(doing, done, total)
        done += 1

    try:
        for _ in range(WARM_UP):
            begin("warm-up")
            session.each(lambda trainee: trainee.bare_ms())
        for index in range(steps):
            begin(f"step {index + 1}")
            session.each(lambda trainee: trainee.bare_ms(keep=True))
            begin(f"step {index + 1}, with clocks")
            session.each(lambda trainee: trainee.timed())
        begin("count")
        session.each(lambda trainee: trainee.count())
        begin("torch.profiler")
        session.each(lambda trainee: trainee.profile())
        begin("the machine's peak")
        session.roof = measured_roof(inputs.device)
        begin("done")
    except KeyboardInterrupt:
        session.interrupted = True
        if any(len(trainee.steps) == 0 or not trainee.bare for trainee in session.trainees.values()):
            raise
    return session.result(steps)


class _Session:
    """Both variants of one model, and what was measured of them."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Any, loss: Loss | None, optimizer: Any, name: str
    ) -> None:
        self.name, self.inputs = name, inputs
        _check_device(model, inputs.device)
        stock, fused = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        unfuse(stock)
        report = fuse(fused)
        names = block_names(report)
        if not report.fused and not report.partial:
            raise ValueError(f"profile: expected a model with something to fuse, got {name}: {report}")
        kinds = {entry.name: entry.class_name for entry in (*report.fused, *report.partial)}
        self.kinds = {**kinds, STEM: "", HEAD: ""}
        if targets is None:
            targets = _random_classes(stock, inputs)
        models = {"stock": stock, "fused": fused}
        self.trainees = {v: _Trainee(models[v], names, inputs, targets, loss, optimizer) for v in VARIANTS}
        self.roof: dict[str, float | None] = {}
        self.interrupted = False

    def each(self, action: Callable[[_Trainee], object]) -> None:
        """Does the same for both, always in one order: so every step, bare or with clocks, follows one of the other."""
        for trainee in self.trainees.values():
            action(trainee)

    def result(self, steps: int) -> ProfileResult:
        trainees = self.trainees
        settings = {
            "input": list(self.inputs.shape),
            "dtype": str(self.inputs.dtype).removeprefix("torch."),
            "steps": steps,
        }
        result = ProfileResult(
            model=self.name,
            settings=settings | {"threads": torch.get_num_threads(), "device": str(self.inputs.device)},
            environment={**machine_facts(self.inputs.device.type), "command": command_line()},
            steps={v: t.median_step() for v, t in trainees.items()},
            blocks=self._blocks(),
            roof=self.roof,
            interrupted=self.interrupted,
        )
        for variant, trainee in trainees.items():
            result.ops += [{"variant": variant, **row} for row in trainee.ops]
            result.timeline += [{"variant": variant, **row} for row in trainee.timeline]
            bare = result.steps[variant]["bare"]
            result.overhead.setdefault("clocks", {})[variant] = trainee.clocks_overhead()
            if trainee.trace:
                curve = memory_curve(trainee.trace, self.inputs.device)
                peak = max((size for _, size in curve), default=0.0)
                stride = -(-len(curve) // CURVE_POINTS) or 1
                result.memory[variant] = {"peak_bytes": peak, "curve": curve[::stride]}
                result.overhead.setdefault("torch.profiler", {})[variant] = trainee.profiled_ms / bare - 1
        result.trace = merged_trace({v: t.trace for v, t in trainees.items() if t.trace})
        return result

    def _blocks(self) -> list[dict[str, Any]]:
        rows = []
        order = list(dict.fromkeys((STEM, *self.trainees["stock"].clock.order, HEAD)))
        for name in order:
            stage = name.rpartition(".")[0] or name
            row: dict[str, Any] = {"block": name, "stage": stage, "class": self.kinds.get(name, "")}
            for variant, trainee in self.trainees.items():
                row[variant] = trainee.block(name)
            rows.append(row)
        return rows


class _Trainee:
    """One variant with its optimizer, and its measurements."""

    def __init__(
        self, model: nn.Module, names: list[str], inputs: Tensor, targets: Any, loss: Any, optimizer: Any
    ) -> None:
        memory_format = torch.channels_last if inputs.dim() == 4 else torch.contiguous_format
        self.model = model.to(memory_format=memory_format)
        self.inputs, self.targets = inputs.contiguous(memory_format=memory_format), targets
        self.loss = loss or _cross_entropy
        make = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9))
        self.optimizer = make(self.model.parameters())
        self.wait = synchronizer(inputs.device)
        self.clock = BlockClock(self.model, names, self.wait)
        self.bare: list[float] = []
        self.steps: list[dict[str, float]] = []
        self.parts: list[dict[str, dict[str, float]]] = []  # of each step: ms by phase and block
        self.counter: Counter | None = None
        self.ops: list[dict[str, Any]] = []
        self.trace: dict[str, Any] = {}
        self.timeline: list[dict[str, Any]] = []
        self.profiled_ms = 0.0

    def bare_ms(self, keep: bool = False) -> None:
        """A step timed as a whole."""
        self.wait()
        start = time.perf_counter()
        self._step()
        self.wait()
        if keep:
            self.bare.append(1e3 * (time.perf_counter() - start))

    def timed(self) -> None:
        """A step with a clock at each phase and block."""
        self.clock.clear()
        with self.clock:
            marks = self._step()
        forward, backward, optimizer = (1e3 * (b - a) for a, b in pairwise(marks))
        total = 1e3 * (marks[3] - marks[0])
        self.steps.append({"forward": forward, "backward": backward, "optimizer": optimizer, "step": total})
        backward_ms = self.clock.backward_ms(marks[1], marks[2])
        self.parts.append({"forward_ms": self.clock.forward_ms(marks[0], marks[1]), "backward_ms": backward_ms})

    def count(self) -> None:
        """A step that counts bytes, FLOP and what is kept."""
        own = [*self.model.parameters(), *self.model.buffers(), self.inputs]
        counter = Counter(STEM, {tensor.untyped_storage().data_ptr() for tensor in own})
        clock = BlockClock(self.model, self.clock.names, lambda: None, counter.enter)
        with clock, counter:
            loss = self.loss(self.model(self.inputs), self.targets)
            loss.backward()
        self.optimizer.zero_grad(set_to_none=True)
        self.counter = counter

    def profile(self) -> None:
        """A step under torch.profiler, with marks at its phases and blocks."""
        start = time.perf_counter()
        clock = BlockClock(self.model, self.clock.names, lambda: None, lambda name: mark("block", name))

        def step() -> None:
            nonlocal start
            start = time.perf_counter()
            with clock:
                self._step(lambda phase: mark("phase", phase))
            self.wait()
            self.profiled_ms = 1e3 * (time.perf_counter() - start)

        self.bare_ms()  # what was counted and traced before has moved the heap: a first step faults new pages in
        self.ops, self.trace = profiled_step(step, self.inputs.device)
        self.timeline = timeline(self.trace)

    def median_step(self) -> dict[str, float]:
        """The step of median length with its phases, and the median of the bare steps."""
        return self.steps[self._median] | {"bare": median(self.bare)}

    def clocks_overhead(self) -> float:
        """How much longer a step takes with clocks than the bare one before it, as a share: the median over steps."""
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

    def _step(self, on_phase: Callable[[str], None] = lambda phase: None) -> tuple[float, float, float, float]:
        """Times at the start and after each phase, in seconds; ``on_phase`` is told what begins."""
        marks = [time.perf_counter()]
        on_phase("forward")
        loss = self.loss(self.model(self.inputs), self.targets)
        self._mark(marks)
        on_phase("backward")
        loss.backward()
        self._mark(marks)
        on_phase("optimizer")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._mark(marks)
        return marks[0], marks[1], marks[2], marks[3]

    def _mark(self, marks: list[float]) -> None:
        self.wait()
        marks.append(time.perf_counter())


def _check_device(model: nn.Module, device: torch.device) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device != device:
            raise ValueError(
                f"profile: expected the model on {device}, the device of inputs, got {name} on {tensor.device}"
            )


def _output(output: Any) -> Tensor:
    found: Any = output["out"] if isinstance(output, dict) and "out" in output else output
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise TypeError(
            f"profile: expected a model that returns logits [N, classes, ...], or a loss, got {type(output).__name__}"
        )
    return found


def _cross_entropy(output: Any, targets: Any) -> Tensor:
    return cross_entropy(_output(output), targets)


def _random_classes(model: nn.Module, inputs: Tensor) -> Tensor:
    """A class for each image, or for each pixel where the model segments."""
    with torch.no_grad():
        logits = _output(model.eval()(inputs[:1]))
    model.train()
    return torch.randint(logits.shape[1], (inputs.shape[0], *logits.shape[2:]), device=inputs.device)
