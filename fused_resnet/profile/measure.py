"""The measurement: two copies of a model, stock and fused, which take turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.environment import command_line, machine_facts
from ..fuse import fuse, unfuse
from .blocks import HEAD, STEM, block_names
from .forward import Forward, Loss, forward_of, noted_call
from .kineto import memory_curve, merged_trace
from .machine import measured_roof
from .result import VARIANTS, ProfileResult
from .trainee import Optimizer, Trainee

__all__ = ["run"]

STEPS = 5
WARM_UP = 2
CURVE_POINTS = 1000  # of the memory over a step, at most

Progress = Callable[[str, int, int], None]


def run(
    model: nn.Module,
    inputs: Tensor | None = None,  # [N, C, H, W]
    targets: Any = None,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    steps: int = STEPS,
    name: str | None = None,
    progress: Progress | None = None,
) -> ProfileResult:
    """Profiles a training step of ``model``, stock beside fused; the model itself is left as it is.

    Args:
        model: any module that ``fuse`` knows something of, on one device; two copies of it are trained, in train mode.
        inputs: a batch of images, on that device.
        targets: what ``loss`` gets beside the model's output; classes [N] at random where it is None.
        forward: instead of ``inputs``, ``targets`` and ``loss``, for any other step: is given one of the copies and
            returns the loss []. It may use autocast, call the model with whatever it takes, and as often as it likes.
            A generator accumulates gradients: each loss that it yields is propagated backward before it goes on.
        loss: of output and targets; cross entropy by default, of a tensor [N, classes, ...] or of a dict's ``"out"``.
        optimizer: makes one from parameters; SGD with momentum by default.
        steps: timed steps of each variant.
        name: of the model, for the report.
        progress: told what is done now, how many units of work are done, and of how many.

    Raises ValueError where ``fuse`` finds nothing to fuse, for less than one step, for a model that is not, all of it,
    on one device, that of ``inputs``, for ``forward`` beside ``inputs``, ``targets`` or ``loss``, or none of them, and
    for a loss that is no scalar or does not depend on the model's parameters; TypeError where it is no tensor. Ctrl-C
    ends the timing: the steps so far are returned, marked ``interrupted``, or KeyboardInterrupt goes on where there are
    none.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    forward = _forward(inputs, targets, loss, forward)
    session = _Session(model, name or type(model).__name__, forward, optimizer, _device(model, inputs))
    total = WARM_UP + 2 * len(VARIANTS) * steps + 4
    done = 0

    def begin(doing: str) -> None:
        nonlocal done
        if progress:
            progress(doing, done, total)
        done += 1

    try:
        for _ in range(WARM_UP):
            begin("warm-up")
            session.warm_up()
        ways = [("", Trainee.time_bare), (", with clocks", Trainee.timed)]
        for index in range(steps):
            for variant, trainee in session.trainees.items():
                for suffix, action in ways:
                    begin(f"step {index + 1}, {variant}{suffix}")
                    action(trainee)
            ways.reverse()  # a machine that slows down then slows both alike
        begin("count")
        session.each(lambda trainee: trainee.count())
        begin("torch.profiler")
        session.each(lambda trainee: trainee.profile())
        begin("the machine's peak")
        session.roof = measured_roof(session.device)
        begin("done")
    except KeyboardInterrupt:
        session.interrupted = True
        if any(not trainee.steps or not trainee.bare for trainee in session.trainees.values()):
            raise
    return session.result(steps)


class _Session:
    """Both variants of one model, and what was measured of them."""

    def __init__(
        self, model: nn.Module, name: str, forward: Forward, optimizer: Optimizer | None, device: torch.device
    ) -> None:
        self.name, self.device = name, device
        stock, fused = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        unfuse(stock)
        report = fuse(fused)
        if not report.fused and not report.partial:
            raise ValueError(f"profile: expected a model with something to fuse, got {name}: {report}")
        names = block_names(report)
        kinds = {entry.name: entry.class_name for entry in (*report.fused, *report.partial)}
        self.kinds = {**kinds, STEM: "", HEAD: ""}
        models = {"stock": stock, "fused": fused}
        self.trainees = {v: Trainee(models[v], names, forward, optimizer, device) for v in VARIANTS}
        self.call: dict[str, Any] = {}  # what the model is called with
        self.roof: dict[str, float | None] = {}
        self.interrupted = False

    def warm_up(self) -> None:
        """An untimed step of each, of which is noted what the model is called with."""
        stock = self.trainees["stock"]
        with noted_call(stock.model, stock.clock.names, self.device) as self.call:
            self.each(lambda trainee: trainee.warm_up())

    def each(self, action: Callable[[Trainee], object]) -> None:
        """Does the same for both."""
        for trainee in self.trainees.values():
            action(trainee)

    def result(self, steps: int) -> ProfileResult:
        trainees = self.trainees
        settings = {
            **self.call,
            "steps": steps,
            "threads": torch.get_num_threads(),
            "device": str(self.device),
        }
        result = ProfileResult(
            model=self.name,
            settings=settings,
            environment={**machine_facts(self.device.type), "command": command_line()},
            steps={v: t.median_step() for v, t in trainees.items()},
            blocks=self._blocks(),
            roof=self.roof,
            interrupted=self.interrupted,
        )
        for variant, trainee in trainees.items():
            result.ops += [{"variant": variant, **row} for row in trainee.ops]
            result.timeline += [{"variant": variant, **row} for row in trainee.timeline]
            result.kernels += [{"variant": variant, **row} for row in trainee.kernels]
            result.overhead.setdefault("clocks", {})[variant] = trainee.clocks_overhead()
            if trainee.trace:
                curve = memory_curve(trainee.trace, self.device)
                peak = max((size for _, size in curve), default=0.0)
                stride = -(-len(curve) // CURVE_POINTS) or 1
                result.memory[variant] = {"peak_bytes": peak, "curve": curve[::stride]}
                result.overhead.setdefault("torch.profiler", {})[variant] = trainee.profiler_overhead
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


def _device(model: nn.Module, inputs: Tensor | None) -> torch.device:
    """The device of ``inputs``, or of the model; ValueError where part of the model is elsewhere."""
    named = [*model.named_parameters(), *model.named_buffers()]
    owner, device = ("inputs", inputs.device) if inputs is not None else ("", torch.device("cpu"))
    if inputs is None and named:
        owner, device = named[0][0], named[0][1].device
    for name, tensor in named:
        if tensor.device != device:
            raise ValueError(
                f"profile: expected the model on {device}, the device of {owner}, got {name} on {tensor.device}"
            )
    return device


def _forward(inputs: Tensor | None, targets: Any, loss: Loss | None, forward: Forward | None) -> Forward:
    """The user's forward, or that of ``inputs``."""
    given = [name for name, value in (("inputs", inputs), ("targets", targets), ("loss", loss)) if value is not None]
    if forward is not None:
        if given:
            raise ValueError(f"profile: expected inputs, targets and loss within forward, got {', '.join(given)} too")
        return forward
    if inputs is None:
        raise ValueError("profile: expected inputs, a batch of images, or a forward, got neither")
    return forward_of(inputs, targets, loss)
