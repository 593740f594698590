"""The benchmark: a parent that computes nothing, and one child process for each variant of a model.

The children take turns: each round asks every variant for one step, in an order that changes from round to round, and
only one works at a time. Ratios are taken within a round, so that a machine that slows down slows all variants. The
children start under glibc's default allocator and go on under the tuned one, if both are asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import correctness, environment
from .allocator import stages
from .child import Child
from .result import BenchResult
from .settings import DTYPES, Settings
from .summary import row, turn_order
from .variants import VARIANTS

__all__ = ["Progress", "run", "run_settings"]

REFERENCE = "eager"  # the variant that the others are compared with
WARM_UP_S = 1.0  # of untimed steps, that of the correctness check among them

Progress = Callable[[str, int, int], None]  # is told what is done now, how many units of work are done, and of how many


def run(
    *, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None, **settings: Any
) -> BenchResult:
    """Benchmarks fused ResNets against stock PyTorch: ``run(models=["resnet18"], batch=8, rounds=3).rows``.

    ``settings`` are the fields of :class:`Settings`. ``on_rows`` is called with the result so far when that changes.
    Ctrl-C ends the run: the rows of the rounds done so far are returned, marked ``interrupted``. Raises ValueError or
    ImportError for what cannot be run, BenchError where a variant fails or computes something else than stock PyTorch.
    """
    return run_settings(Settings(**settings), progress, on_rows)


def run_settings(
    settings: Settings, progress: Progress | None = None, on_rows: Callable[[BenchResult], None] | None = None
) -> BenchResult:
    """As :func:`run`, for settings that are checked already."""
    result = BenchResult(environment=environment.request(settings))
    steps = _Steps(settings, progress)
    try:
        for model in settings.models:
            for allocators in stages(settings.allocators):
                with ExitStack() as children:
                    race = _Race(settings, model, allocators[0], children, steps)
                    result.environment |= race.start()
                    result.environment.setdefault("correctness", []).append(race.check())
                    for allocator in allocators:
                        race.warm_up(allocator)
                        try:
                            race.run()
                        finally:  # a race that was interrupted has rows too
                            result.rows += race.rows()
                            if on_rows:
                                on_rows(result)
    except KeyboardInterrupt:
        result.interrupted = True
        if on_rows:
            on_rows(result)
    return result


class _Steps:
    """Counts units of work: a start, a check, a warm-up or a timed step of one child."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        starts, races = len(stages(settings.allocators)), len(settings.allocators)
        units = 2 * starts + (1 + settings.rounds) * races
        self.total = len(settings.models) * len(settings.compared) * units
        self.done = 0
        self.progress = progress

    def begin(self, doing: str) -> None:
        if self.progress:
            self.progress(doing, self.done, self.total)
        self.done += 1


class _Race:
    """The variants of one model, each in its child process, which starts under ``allocator``."""

    def __init__(self, settings: Settings, model: str, allocator: str, stack: ExitStack, steps: _Steps) -> None:
        self.settings, self.model, self.allocator, self.steps = settings, model, allocator, steps
        self.jobs = {variant: settings.job(model, variant) for variant in settings.compared}
        self.children = {v: stack.enter_context(Child(job, allocator)) for v, job in self.jobs.items()}
        self.saved_bytes: dict[str, int | None] = {}
        self.peak_bytes: dict[str, int] = {}
        self.rounds: list[dict[str, float]] = []  # of each complete round: step time in ms by variant

    def start(self) -> dict[str, Any]:
        """Waits for the children, which start side by side, as nothing is timed yet; what one says of where it runs."""
        facts = {}
        for variant, child in self.children.items():
            self._begin("start", variant)
            facts = child.receive()
        return facts

    def check(self) -> dict[str, Any]:
        """Compares all variants with eager stock PyTorch; the errors and limits, or BenchError."""
        answers = {}
        for variant, child in self.children.items():
            self._begin("check", variant)
            answers[variant], self.saved_bytes[variant] = _answer(child)
        if REFERENCE not in answers:
            with Child(self.settings.job(self.model, REFERENCE), self.allocator) as child:
                child.receive()
                answers[REFERENCE], _ = _answer(child)
        reference = answers.pop(REFERENCE)
        errors = {variant: correctness.errors(answer, reference) for variant, answer in answers.items()}
        limits = correctness.limits(errors, DTYPES[self.settings.dtype])
        correctness.refuse_wrong(self.model, errors, limits)
        return {"model": self.model, "allocator": self.allocator, "relative_errors": errors, "limits": limits}

    def warm_up(self, allocator: str) -> None:
        """Brings every variant to its usual pace under ``allocator``, for a new series of rounds."""
        goes_on = allocator != self.allocator
        self.allocator, self.rounds, self.peak_bytes = allocator, [], {}
        for variant, child in self.children.items():
            self._begin("warm-up", variant)
            if goes_on:
                child.ask("allocator", name=allocator)
            child.ask("warm_up", at_least_s=WARM_UP_S)

    def run(self) -> None:
        """Times the rounds."""
        variants = list(self.children)
        for index in range(self.settings.rounds):
            times: dict[str, float] = {}
            for place in turn_order(len(variants), index):
                variant = variants[place]
                self._begin(f"round {index + 1}", variant)
                reply = self.children[variant].ask("step")
                times[variant] = reply["step_ms"]
                self.peak_bytes[variant] = max(reply["peak_bytes"], self.peak_bytes.get(variant, 0))
            self.rounds.append(times)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each variant, from the complete rounds; none before the first."""
        if not self.rounds:
            return []
        stock = [variant for variant in self.jobs if VARIANTS[variant].is_stock]
        return [
            row(job, self.allocator, self.rounds, stock, self.saved_bytes[variant], self.peak_bytes[variant])
            for variant, job in self.jobs.items()
        ]

    def _begin(self, doing: str, variant: str) -> None:
        self.steps.begin(f"{self.model}, {self.allocator} allocator: {doing}, {variant}")


def _answer(child: Child) -> tuple[Any, int | None]:
    """A child's answer (a :class:`.trial.Answer`), and its saved_activation_bytes."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "answer.pt")
        reply = child.ask("check", path=str(path))
        return torch.load(path), reply["saved_activation_bytes"]
